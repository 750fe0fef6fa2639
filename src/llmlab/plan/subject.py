"""The subject of a plan: a config as `llmlab train` takes it, or a bare config.json. No data and no weights are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from llmlab import registry
from llmlab.config import devices, layout, learned, schema, traits
from llmlab.config import spec as specs
from llmlab.config.companions import judging
from llmlab.data import stand_in
from llmlab.errors import UserError
from llmlab.model import build, flops
from llmlab.model.model import Model
from llmlab.plan.memory import Training, Where
from llmlab.slots import Vocabulary
from llmlab.training import batch_size, companion_tokens, companions, preflight, recipe
from llmlab.training import cost as costs
from llmlab.training.strategies import elementwise, tensor_parallel

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from llmlab.config.composed import Composed

SAMPLES = 8


@dataclass(frozen=True)
class Subject:
    """cost: as the record of a run has it. training: None where the model has no head that its objective trains."""

    name: str
    composed: Composed
    spec: specs.ModelSpec
    model: Model
    cost: costs.Cost
    cut: recipe.Cut
    where: Where
    training: Training | None
    assumed: tuple[str, ...]
    others: Mapping[str, Model] = field(default_factory=dict)  # the objective's other models, by role

    @property
    def cfg(self) -> DictConfig:
        return self.composed.cfg


def of_config(composed: Composed) -> Subject:
    """UserError for what a run would refuse."""
    entry, vocabulary, assumed = _vocabulary(composed)
    try:
        spec = composed.spec if vocabulary is None else layout.with_vocabulary(composed, vocabulary)
        assert spec is not None  # of a config that is sound
        spec = companions.fitted(spec, composed)
    except ValueError as e:
        raise UserError(str(e)) from e
    return _subject(" ".join(composed.overrides) or "the default config", composed, spec, entry, assumed, vocabulary)


def of_checkpoint(name: str, overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> Subject:
    """The model of hf=NAME, of whose folder config.json alone is read; `architectures` there tells its heads."""
    from llmlab.config.compose import compose
    from llmlab.hub import load
    from llmlab.hub.locate import locate

    folder = locate(name, ("config.json",))
    about = load.describe(folder, bare=True)
    typed = {o.lstrip("+~").partition("=")[0] for o in overrides}
    # What is typed counts for more than what config.json says.
    own = [o for o in about.trained if o.partition("=")[0] not in typed]
    composed = compose([*own, *overrides], config_dirs, strict=False)
    try:
        resolved = layout.resolve(composed, roles=())
        spec = about.headed(resolved)
    except ValueError as e:
        raise UserError(str(e)) from e
    # Only what was typed is checked: a config.json may well have keys that change nothing.
    mine = replace(composed, keys=composed.keys & typed)
    if useless := [line for line, by_hand in traits.unused(mine, resolved) if by_hand]:
        raise UserError("\n".join(useless))
    # config.json may leave `architectures` out: transformers writes it when a model is saved, not a bare config.
    head = (about.config.get("architectures") or list(about.entry.architectures))[0]
    assumed = [f"{learned.typed(composed.cfg)}: {head} does not say how it is trained"]
    if "quantization_config" in about.config:
        assumed.append("quantization_config is left out: numbers are as precision says")
    entry = learned.entry(composed.cfg)
    return _subject(f"hf={name} ({head})", composed, spec, entry, assumed)


def _vocabulary(composed: Composed) -> tuple[registry.Entry, int | None, list[str]]:
    """(the objective, ids that the tokenizer uses or None, what is assumed of them)."""
    cfg = composed.cfg
    entry = learned.entry(cfg)
    kind, size = cfg.tokenizer.kind, cfg.model.vocab_size
    if kind == "file":
        from llmlab.data import tokenizer

        made = tokenizer.make(recipe.as_dataclass(cfg.tokenizer, schema.Tokenizer), [], [], entry.special)
        return entry, made.vocab_size, []
    if (ids := companion_tokens.tokens(composed.companions)) is not None:
        return entry, ids, [f"{ids:,} tokens: those of the finished model, whose tokenizer the run must have"]
    if size is not None:
        return entry, None, []
    known = f"{layout.round_up(cfg.tokenizer.vocab_size, 64):,} rows of the vocabulary"
    if kind == "char":
        return entry, None, [f"{known}: tokenizer=char has one for each character of the data, which is not read"]
    return entry, None, [f"{known}: tokenizer.vocab_size, which a small corpus may not fill"]


def _subject(
    name: str,
    composed: Composed,
    spec: specs.ModelSpec,
    entry: registry.Entry,
    assumed: list[str],
    vocabulary: int | None = None,
) -> Subject:
    cfg = composed.cfg
    length = cfg.data.seq_len
    if wrong := devices.problems(cfg):
        raise UserError("\n".join(wrong))
    split = cfg.strategy.tensor_parallel
    # Not the device that is here: the plan is for where the run will be.
    kind: Literal["cpu", "cuda"] = "cpu" if str(cfg.trainer.accelerator) == "cpu" else "cuda"
    counted = str(cfg.trainer.devices) not in ("auto", "-1")
    # Where the run will be is not known; one device, or one group of those that share each layer.
    count = int(cfg.trainer.devices) if counted else split
    parallel = count * int(cfg.trainer.num_nodes) // split
    cut = recipe.Cut.of(cfg, parallel)
    learns = recipe.learning(cfg)
    try:
        model = build.assemble(spec)
        learns.apply(model)
        preflight.reaches(model, length)
        preflight.parts(spec, kind, cfg.precision)
        tensor_parallel.check(split, spec)
        if cfg.strategy.name in devices.ZERO:
            elementwise.check(cfg)
        wanted = _vocabulary_of(spec, entry, vocabulary)
        objective = recipe.part_factory(cfg, learned.slot(cfg))(wanted, length)
        optimizer = recipe.part_factory(cfg, "optimizer")()
    except ValueError as e:
        raise UserError(str(e)) from e
    if entry.attribute("reads") != "text":
        assumed.append(f"records of {length:,} tokens each: how long they are, the data would tell")
        for role, part in spec.heads.items():
            if "n_classes" in part.options and f"heads.{role}.n_classes" not in composed.keys:
                assumed.append(f"{part.options['n_classes']} classes: how many there are, the data would tell")
    elif "data.seq_len" not in composed.keys:
        assumed.append(f"texts of {length:,} tokens: data.seq_len as it is by default")
    if cfg.data.source == "files" and batch_size.fits(composed):
        assumed.append(f"{cfg.train.batch_size} samples or more: a run that has fewer takes as many a step")
    if not counted:
        assumed.append(f"trainer.devices={cfg.trainer.devices}: {count}, as it is not known where the run will be")
    if cfg.placement.compile:
        assumed.append("placement.compile=true: memory as it is without")
    if cfg.data.separate_documents:
        assumed.append("one document a sequence: how long they are, the data would tell")
    trained = set(entry.attribute("heads")) <= set(spec.heads)
    others = companions.resolve(composed, model, vocabulary)
    for role, companion in others.items():
        with companions.naming_role(role):
            preflight.parts(companion.spec, kind, cfg.precision)
            tensor_parallel.check(split, companion.spec)
    models = {role: companion.assemble(model) for role, companion in others.items()}
    if trained:
        # numpy draws them as uint32, and a config.json may claim any vocabulary.
        ordinary = min(wanted.size - len(wanted.special), 1 << 32)
        cost = costs.estimate(
            {costs.TRAINED: model, **models},
            objective,
            stand_in.StandIns(objective, SAMPLES, length, ordinary),
            judging(cfg),
        )
    else:
        source = length if spec.topology == "encoder_decoder" else None
        account = flops.account(model, length, source_length=source)
        cost = costs.one_pass(model, account, length)
        assumed.append("every position goes through the heads: the objective trains none of them")
    where = Where(cfg.strategy.name, parallel, split, cut.accumulate > 1)
    training = None
    if trained:
        apart = cfg.data.separate_documents
        training = Training(spec, objective, optimizer, length, cfg.precision, kind, apart, learns, others)
    return Subject(name, composed, spec, model, cost, cut, where, training, tuple(assumed), models)


def _vocabulary_of(spec: specs.ModelSpec, entry: registry.Entry, ids: int | None) -> Vocabulary:
    """The special tokens that an objective asks for are the last of the ids: the tokenizer's, else all that the model has."""
    # A finished companion's table may be rounded up to another number of rows; of ids alone all models have scores.
    size = ids or spec.sizes.vocab_size
    names = entry.special
    if len(names) >= size:
        raise UserError(f"model.vocab_size={size} has no room for the {len(names)} special tokens of the objective")
    return stand_in.vocabulary(size, names)
