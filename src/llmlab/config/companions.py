"""Companions: the other models that an objective works with, by role; what it declares of each and what was chosen for it.

On the command line each is words that change the run's own model, `models.generator=[size=nano]`, or a finished model,
`models.teacher=RUN` or `models.teacher=hf=FOLDER`. Without, it is what the model's file or the objective's declaration says.
The word `width=1/4` stands for the sizes of a model that is a quarter as wide as the run's own. No torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from llmlab import registry
from llmlab.config import heads, init_from, learned
from llmlab.config.composed import Chosen, Composed, Declared
from llmlab.config.layout import with_vocabulary
from llmlab.errors import UserError
from llmlab.registry import near
from llmlab.sizes import divisors
from llmlab.slot_names import LAYER_SLOTS, MODEL_SLOTS

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

    from llmlab.config.spec import ModelSpec

KEY = "models"
WIDTH = "width="
SHARED = ("embedding", "position")  # what a companion can have in common with the trained model
GROUPS = ("model", "size", *LAYER_SLOTS, *MODEL_SLOTS, "head")  # choices that make a model
NODES = (*GROUPS, "layers", "execute", "kinds", "stacks", "heads")  # and keys below which its values are
ROOT: tuple[str, ...] = ("seed", "data", "tokenizer", "train", "budget", "strategy", "placement", "precision")
ROOT += (
    "trainer",
    "logger",
    "objective",
    "alignment",
    "reward",
    "optimizer",
    "schedule",
    "init_from",
    "init_embedding",
    "init_adapter",
    KEY,
)  # other words of a run
# What `size=` states, so that a typed one gives way to the size of a companion's own words.
OF_SIZE = ("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "ffn_dim")


def declared(cfg: DictConfig) -> dict[str, Declared]:
    """The roles that what a run learns by and its reward declare. UserError in a line for one that can't be meant."""
    found, judges = _of_part(learned.entry(cfg)), judging(cfg)
    if both := [role for role in judges if role in found]:
        raise UserError(f"{KEY}.{both[0]}: {learned.typed(cfg)} and reward={cfg.reward._part_} both name a model so")
    return {**found, **judges}


def judging(cfg: DictConfig) -> dict[str, Declared]:
    """The roles of the models that the reward of a run judges with."""
    if cfg.get("reward") is None:
        return {}
    found = _of_part(registry.of_node("reward", cfg.reward))
    return {role: dataclasses.replace(about, trains=False, judges=True) for role, about in found.items()}


def _of_part(entry: registry.Entry) -> dict[str, Declared]:
    models = entry.attribute("models")
    where = f"{entry.path}:{entry.line}: {entry.slot}={entry.name}"
    if not isinstance(models, dict):
        raise UserError(f"{where}: models must be a dict of roles, but is {models!r}")
    # By the dataclass, so that a new key need not be listed twice.
    known = [f.name for f in dataclasses.fields(Declared) if f.name not in ("role", "judges")]
    found = {}
    for role, about in models.items():
        # Companions are handed to `loss` as keyword arguments beside `model` and `batch`.
        if not (isinstance(role, str) and role.isidentifier()) or role in ("model", "batch"):
            raise UserError(f"{where}: models.{role} can't be a role; name it as a Python argument, not model or batch")
        if not isinstance(about, dict):
            raise UserError(f"{where}: models.{role} must be a dict, but is {about!r}")
        if other := [k for k in about if k not in known]:
            raise UserError(f"{where}: models.{role} has the key {other[0]!r}; {near(str(other[0]), known)}")
        found[role] = made = Declared(role, **about)  # type: ignore[arg-type]  # literals of the class, read by ast
        if other := [name for name in made.shares if name not in SHARED]:
            raise UserError(f"{where}: models.{role} shares {other[0]!r}; {near(str(other[0]), SHARED)}")
        if made.delta and "embedding" not in made.shares:
            raise UserError(
                f"{where}: models.{role} has a delta to a table that it does not share; add shares=('embedding',)"
            )
        if made.copies and (made.trains or made.shares or made.words):
            raise UserError(f"{where}: models.{role} copies the trained model: it can't train, share or have words")
    return found


@contextmanager
def naming_role(role: str, source: str | None = None) -> Iterator[None]:
    """Errors of a companion, raised within, name its role."""
    what = f"{KEY}.{role}" + (f"={source}" if source else "")
    try:
        yield
    except ValueError as e:  # a part that refuses what it was given, and UserError
        reason = str(e).splitlines()[0]
        raise UserError(reason if reason.startswith(what) else f"{what}: {reason}") from e


def requested(cfg: DictConfig) -> dict[str, tuple[str, ...] | str]:
    """Words or a source by role, as the config has them. UserError for a value that is neither."""
    from omegaconf import OmegaConf

    # Lists and texts: OmegaConf's ListConfig is no list to isinstance.
    plain: Any = OmegaConf.to_container(cfg[KEY], resolve=True)
    found: dict[str, tuple[str, ...] | str] = {}
    for role, value in plain.items():
        if isinstance(value, list) and all(isinstance(word, str) and "=" in word for word in value):
            found[role] = tuple(value)
        elif isinstance(value, str) and value:
            found[role] = value
        else:
            raise UserError(
                f"{KEY}.{role} must be words as [size=nano,attention=mla], the folder of a run, or hf=FOLDER, "
                f"but is {value!r}"
            )
    return found


def resolve(
    composed: Composed,
    typed: Sequence[Override],
    of_file: Sequence[Override],
    compose: Callable[[Sequence[str], Declared, Sequence[str]], Composed],
    published: Callable[[Sequence[str]], bool],
) -> dict[str, Chosen]:
    """The companions of a composed run, by role. UserError, a line a problem, for roles and words that can't be.

    typed: overrides of the run. of_file: what its experiment chooses. compose: of a companion, from its overrides, its
    declaration and its own words.
    published: whether overrides name both a published size and a size.
    """
    roles = declared(composed.cfg)
    _default(composed.cfg, roles, {str(o.key_or_group) for o in typed})
    chosen = requested(composed.cfg)
    if problems := _unfit(composed.cfg, roles, chosen):
        raise UserError("\n".join(problems))
    found = {}
    for role, about in roles.items():
        value = chosen[role]
        if isinstance(value, str):
            found[role] = Chosen(about, source=_source(about, value))
            continue
        try:
            if about.judges:
                raise UserError(
                    f"[{','.join(value)}] would be a model that has learnt nothing; give a finished one, {KEY}.{role}=RUN or "
                    "hf=FOLDER"
                )
            if value and about.copies:
                raise UserError(
                    f"[{','.join(value)}] would be a model that has learnt nothing: leave it out, and it is this model as it "
                    f"begins, or give a finished one, {KEY}.{role}=RUN or hf=FOLDER"
                )
            own = [_head_of(about, word) for word in value if not word.startswith(WIDTH)]
            words = [*_widths(composed.cfg.model, value, own), *own]
            # Values of an experiment are of its family, and the words may name another.
            mine = [] if any(key_and_package(word)[0] == "model" for word in own) else of_file
            overrides = _inherited([*mine, *typed], words, about, published)
            found[role] = Chosen(about, value, composed=compose([*overrides, *words], about, own))
        except UserError as e:
            # Each line is printed as an error of its own, and has to say which companion it is about.
            raise UserError("\n".join(f"{KEY}.{role}: {line}" for line in str(e).splitlines())) from None
    return found


def _default(cfg: DictConfig, roles: Mapping[str, Declared], typed: Collection[str]) -> None:
    """Put the default words of roles into the config, and take out those of its files that are of another objective."""
    for role in [role for role in cfg[KEY] if role not in roles and f"{KEY}.{role}" not in typed and KEY not in typed]:
        # A family's file sizes a generator, which objective=mlm has none of.
        del cfg[KEY][role]
    for role, about in roles.items():
        if role not in cfg[KEY] and (about.words is not None or about.copies):
            cfg[KEY][role] = list(about.words or ())


def _widths(model: DictConfig, words: Sequence[str], own: Sequence[str]) -> list[str]:
    """Sizes of a model that is so much as wide as the run's own, as `width=1/4` among the words says, but for those that others
    of them state. UserError for a width that can't be, or beside another size."""
    given = [word for word in words if word.startswith(WIDTH)]
    if not given:
        return []
    word = given[-1]
    keys = [key_and_package(other)[0] for other in own]
    if other := next((k for k in keys if k in ("size", "model")), None):
        raise UserError(f"{word} is of the run's own width, and {other} chooses another model; leave one of them out")
    try:
        share = Fraction(word.removeprefix(WIDTH))
        if not 0 < share <= 8:
            raise ValueError
    except (ValueError, ZeroDivisionError):
        raise UserError(f"{word} must be a share of the run's own width, as width=1/4, at most 8") from None
    # Heads of the same width where that comes out even, as ELECTRA's generators have; pairs, which a rotation turns.
    heads = max(1, round(model.n_heads * share))
    dim = 2 * heads * max(1, round(model.dim * share / (2 * heads)))
    sizes = {"dim": dim, "n_heads": heads, "ffn_dim": max(1, round(model.ffn_dim * Fraction(dim, model.dim)))}
    if model.n_kv_heads is not None:
        sizes["n_kv_heads"] = max(d for d in divisors(heads) if d <= max(1, round(model.n_kv_heads * share)))
    return [f"model.{name}={size}" for name, size in sizes.items() if f"model.{name}" not in keys]


def _unfit(cfg: DictConfig, roles: Mapping[str, Declared], chosen: Mapping[str, object]) -> list[str]:
    objective = learned.typed(cfg)
    if unknown := [role for role in chosen if role not in roles]:
        if not roles:
            return [f"{KEY}.{unknown[0]}: {objective} works with no other model; leave it out"]
        return [f"{KEY}.{role}: {objective} has no such role; {near(role, roles)}" for role in unknown]
    return [
        f"reward={cfg.reward._part_} judges with a finished model: {KEY}.{role}=RUN or hf=FOLDER"
        if about.judges
        else f"{objective} needs a model for the role {role}: {KEY}.{role}=[size=nano] is the run's own model with "
        f"these words changed{'' if about.shares else f', {KEY}.{role}=RUN or hf=FOLDER a finished one'}"
        for role, about in roles.items()
        if role not in chosen
    ]


def _source(about: Declared, value: str) -> str:
    """The value of a role that names a finished model, if there seems to be one."""
    said = f"{KEY}.{about.role}={value}"
    if about.shares:
        raise UserError(
            f"{said}: a finished model has an {about.shares[0]} of its own, but the role shares that of the trained model; "
            f"give words, {KEY}.{about.role}=[size=nano]"
        )
    if init_from.hf_name(value) is None and (why := init_from.problem(value)) is not None:
        raise UserError(f"{said}: {why}")
    return value


def _head_of(about: Declared, word: str) -> str:
    """A word that chooses a head, at its role in the companion, which need not be one of the trained model: `head=lm_bias`."""
    # By hand: `heads.addressed` goes by the roles of the run's own objective.
    if of_role := heads.OF_ROLE.fullmatch(word):
        return f"head@heads.{of_role[2]}={of_role[3]}"
    of_none = heads.OF_NONE.fullmatch(word)
    if of_none is None:
        return word
    if len(about.heads) != 1:
        raise UserError(
            f"{word}: name the role, as {' or '.join(f'heads.{role}=NAME' for role in about.heads) or 'none'}"
        )
    role, (_, option, value) = next(iter(about.heads)), of_none.groups()
    return f"heads.{role}{option}={value}" if option else f"head@heads.{role}={value}"


def _inherited(
    typed: Sequence[Override], words: Sequence[str], about: Declared, published: Callable[[Sequence[str]], bool]
) -> list[str]:
    """Words that were typed for the run and hold for its companion too: those that its own do not replace."""
    own = {key_and_package(word) for word in words}
    for word in words:
        key = key_and_package(word)[0]
        if (node := key.partition(".")[0]) not in NODES:
            hint = near(node, NODES) if node not in ROOT else "it holds for the whole run, outside of the brackets"
            raise UserError(f"{word}: {node} is no choice of a model; {hint}")
    found = []
    for o in typed:
        text, key = str(o.input_line), o.key_or_group
        of_model, _, name = key.partition(".")
        if (key, o.package) in own or of_model in (KEY, "init_from", *init_from.TYPED, "experiment", "sweep"):
            continue
        if key == "head" and str(o.package).removeprefix("heads.") not in about.heads:
            continue  # of a head that the companion lacks
        # A typed value beats what a group's file sets, whichever of the two comes first.
        if ("size", None) in own and of_model == "model" and name in OF_SIZE:
            continue
        # A published size leaves none to choose, and the companion's words name one.
        if key == "size" and published([text, *words]):
            continue
        found.append(text)
    return found


def key_and_package(word: str) -> tuple[str, str | None]:
    """(key or group, package) of an override."""
    key, _, package = word.lstrip("+~").partition("=")[0].partition("@")
    return key, package or None


def spec_of(chosen: Chosen, vocabulary: int | None = None) -> ModelSpec:
    """The model that the words of a role make, of the run's vocabulary; None: of the size that the config states."""
    assert chosen.composed is not None and chosen.composed.spec is not None
    return chosen.composed.spec if vocabulary is None else with_vocabulary(chosen.composed, vocabulary)


def absolute(models: DictConfig) -> None:
    """Make the paths of finished models mean the same from any folder, in place."""
    for role, value in models.items():
        if isinstance(value, str):
            # A resumed run, or a point of a sweep, may be started from another folder.
            models[role] = init_from.absolute(value)
