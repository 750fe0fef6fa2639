"""Models that combine every two parts of two slots, the user's own parts included, as far as they can be combined."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import torch

from llmlab import registry
from llmlab.check.covering_array import CoveringArray, Item, Level, Pair, Row, ordered_pair
from llmlab.check.processes import IsolatedProcess, ProcessDied
from llmlab.check.refusal import refusal, untrainable
from llmlab.check.request import BASE_FAMILY, LEARNING_SLOTS, MODEL_SLOTS
from llmlab.check.subject import VOCABULARY, Case, Subject, small_part, with_mask_and_head
from llmlab.check.twins.settings import override
from llmlab.config import fit
from llmlab.config.spec import PartSpec
from llmlab.errors import UserError
from llmlab.objective_attributes import RESTORES

if TYPE_CHECKING:
    from llmlab.config.spec import ModelSpec
    from llmlab.model.model import Model

SPECIAL_SLOTS = (*LEARNING_SLOTS, "head")  # not typed as SLOT=NAME alone: see `_learning_words` and `head_role`
# By topology, the family that gives sizes and traits to a model all of whose parts are chosen.
BASE_FAMILIES = {"decoder": BASE_FAMILY, "encoder": BASE_FAMILY, "encoder_decoder": "t5"}
TINY = (f"model.vocab_size={VOCABULARY}", "model.max_positions=40", "model.dim=32")
# The heads together (8 * 8) are wider than the model (32), and the feed-forward is of neither width, so that a part which
# takes one width for another fails. Eight heads can be grouped by 1, 2, 4 and 8.
WIDTHS = ("model.n_heads=8", "model.head_dim=8", "model.ffn_dim=48")


Options = Mapping[str, Mapping[str, Any]]  # {slot: options of its part}


class Combinations:
    """All choices of parts, and the covering arrays of models that combine them."""

    def __init__(self) -> None:
        self.untrainable_pairs: dict[Pair, str] = {}  # {objective and mask: why it can't be trained under it}
        self.separate_kernels = _kernels_for_process()
        aims = self._aims()
        usual = _part_names(base_spec(aims[0]))
        factors = [aims]
        for slot in (s for s in MODEL_SLOTS if s not in LEARNING_SLOTS):
            # The usual part first: a covering array starts from the row of first levels, which has to be possible.
            names = sorted(registry.names(slot), key=lambda n: (n != usual[slot], n))
            factors.append([((slot, n),) for n in names if (slot, n) not in self.separate_kernels])
        self.cover = CoveringArray(factors, self._refusal)
        self._alone: dict[Item, CoveringArray] = {}
        self._process = IsolatedProcess()

    def _aims(self) -> list[Level]:
        """Objectives with each mask that they can be trained under, and masks of no objective by themselves.

        One factor, since most of these pairs are refused, which would leave a row-by-row search little to choose from. Parts
        of a model meet what it learns in the mask and in the kind of model: of objectives alike in both the first is in.
        """
        levels: list[Level] = []
        alike: set[tuple[str, str]] = set()
        for objective in sorted(registry.names("objective"), key=_by_preference):
            entry = registry.index()["objective", objective]
            kind = (entry.attribute("mask"), (entry.attribute("topologies") or ("decoder",))[0])
            # What learns alone, without layers, says nothing of what is in them.
            if kind not in alike and not entry.attribute("learns"):
                alike.add(kind)
                levels += self._levels(objective)
        trained = {item for level in levels for item in level}
        return [*levels, *((("mask", m),) for m in registry.names("mask") if ("mask", m) not in trained)]

    def _levels(self, objective: str) -> list[Level]:
        """An objective with each mask that it can be trained under."""
        levels: list[Level] = []
        default = registry.index()["objective", objective].attribute("mask")
        for mask in sorted(registry.names("mask"), key=lambda m: (m != default, m)):
            level = (("objective", objective), ("mask", mask))
            try:
                base_spec(level)
            except UserError as e:
                self.untrainable_pairs[ordered_pair(*level)] = refusal(e) or str(e)
            else:
                levels.append(level)
        return levels

    def _refusal(self, items: Sequence[Item]) -> str | None:
        return isolated_refusal(self._process, items, runs=not self.separate_kernels.keys() & set(items))

    def alone(self, item: Item) -> bool:
        """True if an item is in no row of the common array."""
        return item in self.separate_kernels or (item[0] == "objective" and item not in self.cover.known_items())

    def covering(self, item: Item) -> CoveringArray:
        """The array with rows for an item. A kernel that can't train on this device has one of its own: in the common array
        its rows would be skipped by most checks, and the pairs in them remain unchecked; so has an objective that another
        stands for there."""
        if not self.alone(item):
            return self.cover
        at = next(i for i, levels in enumerate(self.cover.factors) if levels[0][0][0] == item[0])
        halves = item[0] == "objective" and registry.index()[item].attribute("halves")
        if item not in self._alone:
            own: list[Level] = [(item,)] if item in self.separate_kernels else self._levels(item[1])
            factors = [own if i == at else levels for i, levels in enumerate(self.cover.factors)]
            if halves:  # First what it needs: the row of first levels has to be possible.
                needed = {(part,) for part in apart().items()}
                factors = [sorted(levels, key=lambda level: level not in needed) for levels in factors]
            self._alone[item] = CoveringArray(factors, self._refusal)
        if not halves:  # conflicts are by place, and its levels stand in others
            # Conflicts that do not involve the item hold here too, and need not be found again. A kernel that can't run here
            # is only built, so some it would not find at all. The common array may have grown since the last call.
            self._alone[item].add_conflicts(
                {c: why for c, why in self.cover.conflicts.items() if at not in {f for f, _ in c}}
            )
        return self._alone[item]

    def rows(self) -> Iterator[tuple[CoveringArray, Row]]:
        """Rows in which every pair occurs that can be combined."""
        for row in self.cover.cover(self.cover.pairs()):
            yield self.cover, row
        for item in self.separate_kernels:
            cover = self.covering(item)
            for row in cover.cover(with_item(cover, item)):
                yield cover, row

    def refused(self) -> dict[Pair, str]:
        """{pair that can't be combined: why}, of the rows made so far."""
        refused = dict(self.untrainable_pairs)
        for cover in (self.cover, *self._alone.values()):
            refused |= cover.refused
        return refused


@cache
def combinations() -> Combinations:
    """The one instance, made when first needed."""
    return Combinations()


def refusal_reason(items: Sequence[Item], runs: bool, options: Options = MappingProxyType({})) -> str | None:
    """Why a model with these parts is refused; None if it isn't, or crashes, which the checks report.

    The parts are put into a base spec composed once for each objective: composing one with Hydra takes some 160 ms, and
    hundreds of combinations are tried. runs: False to build it only, where the kernel is for another device and slow here.
    options: of the parts of some slots, where they are not `small`.
    """
    from llmlab.model.build import assemble

    chosen = dict(items)
    try:
        spec = with_parts(base_spec(learning_level(chosen)), chosen, options)
        objective = chosen.get("objective")
        if objective and registry.index()["objective", objective].attribute("halves"):  # it goes by parts of layers too
            fit.check_objective(spec, PartSpec("objective", objective))
        run_once(spec) if runs else assemble(spec)
    except Exception as e:
        return refusal(e)
    return None


def isolated_refusal(
    process: IsolatedProcess, items: Sequence[Item], runs: bool, options: Options = MappingProxyType({})
) -> str | None:
    """`refusal_reason` in another process; None also if it kills that process, which the checks report."""
    try:
        return process(refusal_reason, tuple(items), runs, dict(options))
    except ProcessDied:
        return None


def with_item(cover: CoveringArray, item: Item) -> list[Pair]:
    """The pairs of an array with an item."""
    return [pair for pair in cover.pairs() if item in pair]


def run_once(spec: ModelSpec) -> None:
    """Build a model with all values 0 and run it on a text: some refusals come only with the first batch."""
    from llmlab.model.build import assemble, materialise

    model = assemble(spec)
    materialise(model)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            # `materialise` leaves memory as it finds it: NaN or 1e38 in a
            # weight could make a part refuse a model that is sound.
            tensor.zero_()
        model.eval()(subject_from(spec, model).batch())


def subject_from(spec: ModelSpec, model: Model) -> Subject:
    """A Subject of a model that was not built from a Case."""
    subject = Subject(Case("", ()))
    subject.spec, subject.model = spec, model
    return subject


def _kernels_for_process() -> dict[Item, str]:
    """{kernel that can't train on this device: why}."""
    reasons: dict[Item, str] = {}
    for name in registry.names("kernel"):
        # A kernel that crashes counts as one that runs, and is checked: the report then shows the crash.
        with contextlib.suppress(Exception):
            if why := untrainable(small_part("kernel", name)):
                reasons["kernel", name] = why
    return reasons


# ---------------------------------------------------------------- a row as overrides


def learning_level(items: Mapping[str, str]) -> Level:
    """The objective and the mask among some parts."""
    return tuple((slot, items[slot]) for slot in LEARNING_SLOTS if slot in items)


def base_spec(aim: Level) -> ModelSpec:
    """The spec of the base family under an objective and a mask. UserError if that objective can't be trained so."""

    items = dict(aim)
    objective = items.get("objective") or _objective_with_mask(items.get("mask")) or _default_objective()
    spec = _composed_spec(objective)
    if (mask := items.get("mask")) not in (None, registry.index()["objective", objective].attribute("mask")):
        spec = with_mask_and_head(spec, mask, None)
        if "objective" in items:
            fit.check_objective(spec, PartSpec("objective", objective))
    return spec


@cache
def _composed_spec(objective: str) -> ModelSpec:
    from llmlab.config import layout

    return layout.resolve(Subject(Case("", _learning_words({"objective": objective}))).composed)


@cache
def _default_objective() -> str:
    return str(Subject(Case("", (f"model={BASE_FAMILIES['decoder']}",))).composed.cfg.objective["_part_"])


def _by_preference(objective: str) -> tuple[bool, bool, int, str]:
    """Sort key: a model has the first objective unless a part needs another. A decoder's own, then those of plain text, of
    which the plainest are first in the list of what a sample restores."""
    entry = registry.index()["objective", objective]
    reads, restores = entry.attribute("reads"), entry.attribute("restores")
    plain = RESTORES.index(restores) if restores else len(RESTORES)
    return objective != _default_objective(), reads != "text", plain, objective


def _objective_with_mask(mask: str | None) -> str | None:
    """The first objective whose own mask it is."""
    names = [n for n in registry.names("objective") if registry.index()["objective", n].attribute("mask") == mask]
    return min(names, key=_by_preference, default=None)


def _learning_words(items: Mapping[str, str]) -> tuple[str, ...]:
    """Overrides for an objective and a mask, and the family and tiny sizes that go with them."""
    objective = items.get("objective") or _objective_with_mask(items.get("mask")) or _default_objective()
    entry = registry.index()["objective", objective]
    topology = (entry.attribute("topologies") or ("decoder",))[0]
    words = [
        f"model={BASE_FAMILIES[topology]}",
        *TINY,
        *WIDTHS,
        # T5's layers are halved between encoder and decoder, so four give each stack two.
        f"model.n_layers={4 if topology == 'encoder_decoder' else 2}",
    ]
    if "alignment" not in items:  # a method stands in an objective's place
        words.append(f"objective={objective}")
    if entry.attribute("halves"):
        words += [f"{slot}={part}" for slot, part in apart().items()]
    words += [f"models.{role}=[]" for role in entry.attribute("models")]  # companions are like the model itself
    if "alignment" in items:
        # A copy of the model, which a reference is, has no words.
        others = registry.index()["alignment", items["alignment"]].attribute("models")
        words += [f"models.{role}=[]" for role, of in others.items() if not of.get("copies")]
    if "objective" in items and items.get("mask", entry.attribute("mask")) != entry.attribute("mask"):
        words.append(f"mask={items['mask']}")
    return tuple(words)


def apart() -> dict[str, str]:
    """Parts of layers in which neither half of a vector depends on the other, by slot."""
    index = registry.index()
    found = {s: next(n for n in registry.names(s) if index[s, n].attribute("halves")) for s in ("attention", "block")}
    return {
        **found,
        "ffn": next(n for n in registry.names("ffn") if index["ffn", n].attribute("absent")),
        "position": "none",
    }


def _mask_without_objective(items: Mapping[str, str]) -> str | None:
    """The mask among some parts, if no objective has it as its own and none is named to be trained under it."""
    mask = items.get("mask")
    return mask if "objective" not in items and mask is not None and _objective_with_mask(mask) is None else None


def pair_case(
    name: str,
    items: Mapping[str, str],
    more: Iterable[str] = (),
    about: Sequence[Item] = (),
    kind: Literal["pair", "setting"] = "pair",
) -> Case:
    """A tiny model of the base family with these parts. more: overrides to append; about: the parts under test."""
    words = [*_learning_words(items)]
    across = f"model={BASE_FAMILIES['encoder_decoder']}" in words
    for slot, part in items.items():
        if slot in SPECIAL_SLOTS:
            continue
        words += [f"{slot}={part}", *small_options(slot, slot, part)]
        if slot == "attention" and across:
            package = "stacks.decoder.cross_attention"
            words += [f"{slot}@{package}={part}", *small_options(package, slot, part)]
    about = tuple(about or items.items())
    more = tuple(more)
    mask = _mask_without_objective(items)
    typed = more if kind == "setting" else ()
    return Case(name, last_of_each_key([*words, *more]), kind, mask, items.get("head"), about, options=typed)


def small_options(package: str, slot: str, part: str) -> list[str]:
    """Overrides that give the part at `package` its `small` options."""
    entry = registry.index().get((slot, part))
    return [override(f"{package}.{key}", value) for key, value in (entry.attribute("small") if entry else {}).items()]


def last_of_each_key(words: Sequence[str]) -> tuple[str, ...]:
    """Overrides without those that a later one with the same key replaces; the later one takes the earlier's place."""
    # Composing refuses a key that is typed twice.
    return tuple({w.partition("=")[0]: w for w in words}.values())


# ---------------------------------------------------------------- a row as a spec, without composing a config


def _part_names(spec: ModelSpec) -> dict[str, str]:
    """{slot: name of its part} of a model whose layers are all alike."""
    last = spec.stacks[-1]
    parts = {**last.layers[0].parts, "embedding": last.embedding, "kernel": spec.kernel, "init": spec.init}
    return {slot: part.name for slot, part in parts.items()} | {"head": next(iter(spec.heads.values())).name}


def with_parts(spec: ModelSpec, items: Mapping[str, str], options: Options = MappingProxyType({})) -> ModelSpec:
    """The spec with these parts in every layer, as composing the overrides would give it. options: by slot, see above."""
    from dataclasses import replace

    names = {slot: name for slot, name in items.items() if slot not in SPECIAL_SLOTS}

    def put(old: PartSpec) -> PartSpec:
        """The part after SLOT=NAME: one with the same name keeps the family's options (the law of naming what is there)."""
        if old.slot not in names:
            return old
        new = small_part(old.slot, names[old.slot])
        small = registry.index()[new.slot, new.name].attribute("small")
        kept = old.options if old.name == new.name else new.options
        return replace(new, options={**kept, **small, **options.get(old.slot, {})})

    spec = spec.in_layers(lambda parts: {s: put(p) for s, p in parts.items()})
    stacks = tuple(
        replace(
            stack,
            embedding=put(stack.embedding),
            cross_attention=put(stack.cross_attention) if stack.cross_attention else None,
        )
        for stack in spec.stacks
    )
    whole = replace(spec, stacks=stacks, kernel=put(spec.kernel), init=put(spec.init))
    return with_mask_and_head(whole, None, items.get("head"))
