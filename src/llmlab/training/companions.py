"""Companions of a run as they are built: the spec of each, what it shares, where its weights come from.

`llmlab.config.companions` has what an objective declares and what was chosen. A companion is assembled, placed, filled and
saved by the code of the trained model; its parameters are called `models.ROLE.PATH` beside the trained model's PATH.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from llmlab.config import init_from, learned
from llmlab.config.companions import KEY, naming_role, spec_of
from llmlab.config.composed import Chosen, Declared
from llmlab.config.fit import check_objective
from llmlab.config.layout import needed_part
from llmlab.config.spec import ModelSpec, PartSpec
from llmlab.data.tokenizer import Tokenizer
from llmlab.errors import UserError
from llmlab.model import adapters, build, roles, split_table
from llmlab.model.model import Model, Shared
from llmlab.runs import checkpoint
from llmlab.runs import folder as run_folder
from llmlab.training import companion_tokens

if TYPE_CHECKING:
    from llmlab.config.composed import Composed


@dataclass(frozen=True)
class Companion:
    """The model of a role. `weights`: of a finished one, the checkpoint or the Hugging Face folder that it begins with, which
    `source` names and whose tensors have `sha256`; None: first values, or those of the run's own checkpoint. `start`: the
    checkpoint of another run that trained the same model in the same role, which init_from names. `trunk`: what init_from
    names, with whose weights it begins but for its heads. `adapter`: of a copy, the folder with PEFT's adapter that
    init_from.adapter names, and its sha256."""

    declared: Declared
    spec: ModelSpec
    words: tuple[str, ...] = ()
    source: str | None = None
    weights: Path | None = None
    sha256: str | None = None
    start: Path | None = None
    trunk: Path | None = None
    adapter: tuple[Path, str] | None = None

    @property
    def role(self) -> str:
        return self.declared.role

    @property
    def trains(self) -> bool:
        return self.declared.trains

    @property
    def is_copy(self) -> bool:
        """True of a frozen copy of the trained model as that begins."""
        return self.declared.copies and self.source in (None, "init_from")

    @property
    def prefix(self) -> str:
        """The beginning of the paths of its parameters."""
        return f"{KEY}.{self.role}."

    def shared(self, trained: Model) -> Shared:
        """The modules of the trained model whose tables it uses."""
        shares, first = self.declared.shares, trained.all_stacks()[0]
        embedding = split_table.Bare(first.embedding) if trained.spec.table_delta else first.embedding
        return Shared(
            embedding if "embedding" in shares else None,
            first.position_at(first.position_of[0])
            if "position" in shares and self._may_share_position(trained)
            else None,
        )

    def _may_share_position(self, trained: Model) -> bool:
        """True where both models add the same learnt vectors to what they read, and no more."""
        # Of the specs: parameters of a model that ZeRO has sharded are empty.
        stacks = (build.assemble(replace(spec, heads={})).all_stacks()[0] for spec in (trained.spec, self.spec))
        there, here = (stack.position_at(stack.position_of[0]) for stack in stacks)
        tables = [[(name, p.shape) for name, p in position.named_parameters()] for position in (there, here)]
        # A bias on the scores is of the heads, of which the other model may have others.
        return bool(tables[0]) and tables[0] == tables[1] and type(there) is type(here) and not there.has_bias

    def assemble(self, trained: Model) -> Model:
        """The model without memory, beside the trained one."""
        return frozen(build.assemble(self.spec, self.shared(trained)), self)

    def fill(self, model: Model, seed: int, rows: tuple[Tensor, Tensor] | None = None) -> None:
        """First values, or the weights of the finished model, or those that init_from brings. rows: of the trained model's
        first values, as `build.initialise` has them, which a copy has too."""
        if self.start is not None:
            load(model, checkpoint.read_weights(self.start, self.role), f"init_from={self.start}: {KEY}.{self.role}")
            return
        if self.declared.copies:
            # A copy of a model that begins with first values has the same: they follow from the seed and the path. So has an
            # adapter, of which the weights that it begins with may have nothing.
            build.initialise(model, seed, rows=rows)
        elif self.weights is None:
            build.initialise(model, seed, self.prefix)
        if self.trunk is not None:
            weights = {n: t for n, t in read_weights(self.trunk, model).items() if not n.startswith("heads.")}
            load(model, weights, f"init_from={self.trunk}: {KEY}.{self.role}", begins=True)
        if self.weights is None:
            return
        weights = self._as_its_heads(
            read_weights(self.weights, model, None if self.adapter is None else self.adapter[0])
        )
        lacking = tuple(f"heads.{role}." for role in model.heads)
        loaded = {name: t for name, t in weights.items() if not name.startswith("heads.") or name.startswith(lacking)}
        load(model, loaded, f"{KEY}.{self.role}={self.source}", begins=self.declared.copies)

    def _as_its_heads(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of a head that stands for another one under the other's name."""
        found = dict(weights)
        for role, other in self.declared.heads_from.items():
            if not any(name.startswith(f"heads.{role}.") for name in weights):
                before = f"heads.{other}."
                found |= {
                    f"heads.{role}.{n.removeprefix(before)}": t for n, t in weights.items() if n.startswith(before)
                }
        return found


def same_frozen(trained: Model, companion: Companion) -> dict[str, nn.Parameter]:
    """The parameters of the trained model that a companion may have for its own, by path: those of a copy that never learn, as
    all beside an adapter, stay what they are."""
    return {path: p for path, p, _ in roles.parameters(trained) if not p.requires_grad} if companion.is_copy else {}


def share_frozen(model: Model, trained: Model, companion: Companion) -> None:
    """Give a companion the trained model's own parameters, in place, where both stay equal: no second copy in memory."""
    there = same_frozen(trained, companion)
    for path, module, name, _, _ in list(roles.walk(model)):
        if path in there:
            module._parameters[name] = there[path]


def frozen(model: Model, companion: Companion) -> Model:
    """The model, in evaluation and without gradients unless its role trains."""
    if companion.trains:
        return model
    for parameter in model.parameters():
        parameter.elsewhere = True  # type: ignore[attr-defined]  # where it came from: no checkpoint has it
    # eval() alone would compute gradients, and requires_grad_(False) alone leave dropout on.
    return model.requires_grad_(False).eval()


def resolve(
    composed: Composed, trained: Model, vocabulary: int | None, tokenizer: Tokenizer | None = None
) -> dict[str, Companion]:
    """The companions of a run that begins, by role. UserError in a line for one that does not fit.

    vocabulary: ids that the tokenizer uses; None: the size that the config states. tokenizer: the run's, where it is known.
    """
    objective = needed_part(learned.node(composed.cfg), learned.slot(composed.cfg))
    found = {}
    for role, chosen in composed.companions.items():
        with naming_role(role, chosen.source):
            if chosen.source is None:
                made = _from_words(chosen, vocabulary, trained)
            else:
                reward = f"reward={composed.cfg.reward._part_}" if chosen.declared.judges else None
                made = _finished(chosen, objective, reward or f"{objective.slot}={objective.name}")
                if tokenizer is not None:
                    companion_tokens.check(made.spec, made.weights, tokenizer)
            made.assemble(trained)
        found[role] = made
    return found


def fitted(spec: ModelSpec, composed: Composed) -> ModelSpec:
    """The model that is trained, with heads as wide as the companions whose hidden states they are compared with, and a token
    table as a companion shares it. UserError where another width was typed."""
    heads = dict(spec.heads)
    for role, companion in (
        needed_part(learned.node(composed.cfg), learned.slot(composed.cfg)).attribute("widths").items()
    ):
        chosen = composed.companions[companion]
        if "width" not in heads[role].options:  # another head was typed
            continue
        with naming_role(companion, chosen.source):
            width = (spec_of(chosen) if chosen.source is None else _read(chosen.source)[0]).sizes.dim
        part = heads[role]
        if part.options.get("width") not in (None, width):
            raise UserError(
                f"heads.{role}.width={part.options['width']}, but {KEY}.{companion} is {width} wide; leave it out"
            )
        heads[role] = replace(part, options={**part.options, "width": width})
    delta = any(chosen.declared.delta for chosen in composed.companions.values())
    return replace(spec, heads=heads, table_delta=delta)


def _from_words(chosen: Chosen, vocabulary: int | None, trained: Model) -> Companion:
    spec = spec_of(chosen, vocabulary)
    if not chosen.words:
        # Typed words alone are handed on to a companion, for its own are to count more than those of an experiment. Without
        # any it is the run's own model, whatever that is made of.
        spec = replace(trained.spec, heads=spec.heads, table_delta=False)
        if chosen.declared.trains:  # all of it does: an adapter is of a model that stays as it is
            spec = replace(spec, adapter=None)
    if "embedding" in chosen.declared.shares:
        spec = sharing(spec, trained)
    return Companion(chosen.declared, spec, chosen.words)


def sharing(spec: ModelSpec, trained: Model) -> ModelSpec:
    """The spec of a model that uses the tables of the trained one: its embedding is as wide as they are. UserError if it
    can't be."""
    first, theirs = spec.stacks[0], trained.all_stacks()[0].embedding
    rows = trained.spec.sizes.vocab_size
    if spec.sizes.vocab_size != rows:
        raise UserError(
            f"it shares the embedding of the trained model, which has {rows} rows, not {spec.sizes.vocab_size}; "
            "leave model.vocab_size out"
        )
    width = build.assemble(replace(spec, heads={})).all_stacks()[0].embedding.embed_dim
    if width == theirs.embed_dim:
        return spec
    part = first.embedding
    option = part.attribute("width_option")
    if not option or part.options[option] is not None:
        raise UserError(
            f"embedding={part} is {width} wide, but it shares that of the trained model, which is {theirs.embed_dim} wide; "
            f"{f'leave embedding.{option} out' if option else 'choose embedding=token'}"
        )
    own = replace(part, options={**part.options, option: theirs.embed_dim})
    return replace(spec, stacks=(replace(first, embedding=own), *spec.stacks[1:]))


def _finished(chosen: Chosen, objective: PartSpec, asking: str) -> Companion:
    """A finished model. UserError where it lacks a head that it is asked for. asking: the part that declares it, as typed."""
    assert chosen.source is not None
    spec, weights = _read(chosen.source)
    roles = chosen.declared.heads
    spec = _standing(spec, chosen.declared)
    if missing := [role for role in roles if role not in spec.heads]:
        has = ", ".join(f"{role}={part.name}" for role, part in spec.heads.items()) or "none"
        raise UserError(f"it has no head for the role {missing[0]}, which {asking} asks for; it has {has}")
    # A finished model may have more heads than the objective asks for; they would take memory for nothing.
    spec = replace(spec, heads={role: spec.heads[role] for role in roles})
    if chosen.declared.trains:  # all of it does, the adapter that it was trained with merged
        spec = replace(spec, adapter=None)
    check_objective(spec, objective, roles)
    source = init_from.absolute(chosen.source)
    return Companion(chosen.declared, spec, (), source, weights.absolute(), fingerprint(weights))


def _standing(spec: ModelSpec, about: Declared) -> ModelSpec:
    """With heads in the place of those that the role lacks, of the same weights."""
    heads = dict(spec.heads)
    for role, other in about.heads_from.items():
        if role not in heads and other in heads:
            part = PartSpec.with_defaults("head", about.heads[role])
            # How many scores it gives, and of which tokens, is what one head has otherwise than the other.
            same = {
                k: v for k, v in heads[other].options.items() if k in part.options and k not in ("n_classes", "dropout")
            }
            heads[role] = replace(part, options={**part.options, **same})
    return replace(spec, heads=heads)


def _read(source: str) -> tuple[ModelSpec, Path]:
    """(the spec of a finished model, its checkpoint or Hugging Face folder)."""
    weights = run_folder.start_of(source, tokenizer=False)
    if not run_folder.is_foreign(weights):
        return replace(run_folder.load(run_folder.home(source))[1], table_delta=False), weights
    from llmlab.hub.load import describe

    return describe(weights).spec, weights


def fingerprint(weights: Path) -> str:
    """The sha256 of a checkpoint's tensors, or one over those of the files of a Hugging Face folder."""
    import hashlib

    from llmlab.files import sha256

    if not run_folder.is_foreign(weights):
        return checkpoint.weights_sha256(weights)
    # A large model's are several, of which glob gives any order.
    files = sorted(weights.glob("*.safetensors"))
    return hashlib.sha256("".join(f"{f.name} {sha256(f)}\n" for f in files).encode()).hexdigest()


def adapter_fingerprint(folder: Path) -> str:
    """The sha256 of the tensors of an adapter in PEFT's format."""
    from llmlab.files import sha256
    from llmlab.hub.adapter_names import WEIGHTS

    return sha256(folder / WEIGHTS)


def begun(
    companions: Mapping[str, Companion], start: Path | None, trained: Model, adapter: Path | None = None
) -> tuple[dict[str, Companion], tuple[str, ...]]:
    """The companions of a run that begins with the checkpoint `start`: those that train and have no weights of their own begin
    with what it has for their roles, else warm ones with the trunk of its model, and copies with what the trained model begins
    with. And a note on each that it has, but of another model."""
    found, notes = dict(companions), []
    for role, copy in companions.items():
        if start is not None and copy.declared.copies and copy.weights is None:
            beside = None if adapter is None else (adapter, adapter_fingerprint(adapter))
            found[role] = replace(
                copy, source="init_from", weights=start.absolute(), sha256=fingerprint(start), adapter=beside
            )
        elif start is not None and copy.declared.warm and copy.weights is None and not copy.words:
            found[role] = replace(copy, trunk=start)
    if start is None or run_folder.is_foreign(start):
        return found, ()
    # Else a shared embedding would be the trained one beside a companion that has yet to learn to read it.
    for role in checkpoint.roles(start):
        companion = companions.get(role)
        if companion is None or not companion.trains or companion.weights is not None:
            continue
        own = companion.assemble(trained).state_dict(keep_vars=True)
        if build.mismatches(own, checkpoint.read_weights(start, role)):
            if found[role].trunk is None:
                notes.append(f"init_from: {KEY}.{role} begins anew, as its {role} is another model")
        else:
            found[role] = replace(companion, start=start)
    return found, tuple(notes)


# ---------------------------------------------------------------- all models of a run as one


def trained_models(model: Model, models: Mapping[str, nn.Module], companions: Mapping[str, Companion]) -> nn.Module:
    """The module that checkpoints and the optimizer are of: the trained model, under its own paths, and beside it the
    companions that train, as `models.ROLE`. Frozen ones are found again where they came from."""
    learning = {role: module for role, module in models.items() if companions[role].trains}
    if not learning:
        return model
    whole = nn.Module()
    for name, child in model.named_children():
        # The same modules under one more parent: `named_parameters` and `state_dict` see both, and nothing is copied.
        whole.add_module(name, child)
    whole.add_module(KEY, nn.ModuleDict(learning))
    return whole


def read_weights(path: Path, model: Model, adapter: Path | None = None) -> dict[str, Tensor]:
    """The weights of a checkpoint, or of a Hugging Face folder by the paths of `model`. adapter: a folder with one in PEFT's
    format, which lies on them."""
    return split_table.fitted(_weights(path, model, adapter), model.spec)


def _weights(path: Path, model: Model, adapter: Path | None) -> dict[str, Tensor]:
    if run_folder.is_foreign(path):
        from llmlab.hub import begin

        weights = begin.weights(path, model)
    else:
        weights = checkpoint.read_weights(path)
        if adapters.is_adapted(weights):
            spec = run_folder.load(run_folder.home(path))[1]
            if model.spec.adapter is None or adapter is not None:
                weights = adapters.merged(weights, spec)
            elif model.spec.adapter != spec.adapter:
                raise UserError(
                    f"init_from={path}: it has adapter={spec.adapter}, of which adapter={model.spec.adapter} would make "
                    "another model; choose the same options, or leave adapter out, and both are merged"
                )
    if adapter is not None:
        from llmlab.hub import read_adapter

        weights |= read_adapter.tensors(adapter, model.spec, weights)
    return weights


def load(model: Model, weights: Mapping[str, Tensor], what: str, *, begins: bool = False) -> None:
    """Whole tensors into a model; UserError that begins with `what` and names the first that do not fit. begins: but for
    heads that only one of them has."""
    try:
        build.load(model, weights, begins=begins)
    except UserError as e:
        raise UserError(f"{what}: {e}") from None
