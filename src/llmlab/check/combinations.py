"""The models in which every two parts of two slots meet. Parts of the user's own take part like all others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from llmlab import registry
from llmlab.check.covering_array import CoveringArray, Item, Level, Pair, Row, ordered_pair
from llmlab.check.processes import IsolatedProcess, ProcessDied
from llmlab.check.refusal import refusal, untrainable
from llmlab.check.request import BASE_FAMILY, LEARNING_SLOTS, SLOTS
from llmlab.check.subject import VOCABULARY, Case, Subject, small_part, with_mask_and_head
from llmlab.errors import UserError

if TYPE_CHECKING:
    from llmlab.config.spec import ModelSpec, PartSpec
    from llmlab.model.model import Model

SPECIAL_SLOTS = (*LEARNING_SLOTS, "head")  # what is not typed as SLOT=NAME alone
# A family of each topology: whose sizes and traits a model has all of whose parts are chosen.
BASE_FAMILIES = {"decoder": BASE_FAMILY, "encoder": BASE_FAMILY, "encoder_decoder": "t5"}
TINY = (f"model.vocab_size={VOCABULARY}", "model.max_positions=40", "model.dim=32")
# Heads in groups, and together of another width than the model, so that none is taken for the other.
WIDTHS = ("model.n_heads=8", "model.head_dim=8", "model.ffn_dim=48")


class Combinations:
    """The choices that there are, and models that cover every two of them."""

    def __init__(self) -> None:
        self.untrainable_pairs: dict[Pair, str] = {}  # an objective and a mask under which it can't be trained
        self.separate_kernels = _kernels_for_process()
        aims = self._aims()
        usual = _part_names(base_spec(aims[0]))
        factors = [aims]
        for slot in (s for s in SLOTS if s not in LEARNING_SLOTS):
            names = sorted(registry.names(slot), key=lambda n: (n != usual[slot], n))
            factors.append([((slot, n),) for n in names if (slot, n) not in self.separate_kernels])
        self.cover = CoveringArray(factors, self._refusal)
        self._by_kernel: dict[Item, CoveringArray] = {}
        self._process = IsolatedProcess()

    def _aims(self) -> list[Level]:
        """Every objective with every mask that it can be trained under; masks that are nobody's, alone."""
        found: list[Level] = []
        for objective in registry.names("objective"):
            own = registry.index()["objective", objective].attribute("mask")
            for mask in sorted(registry.names("mask"), key=lambda m: (m != own, m)):
                level = (("objective", objective), ("mask", mask))
                try:
                    base_spec(level)
                except UserError as e:
                    self.untrainable_pairs[ordered_pair(*level)] = refusal(e) or str(e)
                else:
                    found.append(level)
        trained = {item for level in found for item in level}
        return [*found, *((("mask", m),) for m in registry.names("mask") if ("mask", m) not in trained)]

    def _refusal(self, items: Sequence[Item]) -> str | None:
        return isolated_refusal(self._process, items, runs=not self.separate_kernels.keys() & set(items))

    def covering(self, item: Item) -> CoveringArray:
        """Where rows with an item are: a kernel that can't train where checks are run has an array of its own."""
        if item not in self.separate_kernels:
            return self.cover
        if item not in self._by_kernel:
            factors = [levels if levels[0][0][0] != item[0] else [(item,)] for levels in self.cover.factors]
            self._by_kernel[item] = CoveringArray(factors, self._refusal)
        alone = self._by_kernel[item]
        at = alone.factors.index([(item,)])
        known = self.cover.conflicts.items()  # those that have nothing to do with kernels
        alone.conflicts |= {some: why for some, why in known if at not in {f for f, _ in some}}
        return alone

    def rows(self) -> Iterator[tuple[CoveringArray, Row]]:
        """Every pair at least once, as far as it can be had."""
        for row in self.cover.cover(self.cover.pairs()):
            yield self.cover, row
        for item in self.separate_kernels:
            for row in self.covering(item).cover(with_item(self.covering(item), item)):
                yield self.covering(item), row

    def refused(self) -> dict[Pair, str]:
        """Every pair that can't be had, and why, as far as it was asked for."""
        found = dict(self.untrainable_pairs)
        for cover in (self.cover, *self._by_kernel.values()):
            found |= cover.refused
        return found


@cache
def combinations() -> Combinations:
    """Made once for the parts that there are."""
    return Combinations()


def refusal_reason(items: Sequence[Item], runs: bool) -> str | None:
    """Why a model can't be had, without composing it: the same parts are put into the composed base of its aim.

    runs: False where the kernel is for elsewhere, and slow here. None for one that crashes.
    """
    from llmlab.model.build import assemble

    chosen = dict(items)
    try:
        spec = with_parts(base_spec(learning_level(chosen)), chosen)
        run_once(spec) if runs else assemble(spec)
    except Exception as e:
        return refusal(e)
    return None


def isolated_refusal(process: IsolatedProcess, items: Sequence[Item], runs: bool) -> str | None:
    """The same in a process of its own. None if it ends that process: such a model is one that the checks have to see."""
    try:
        return process(refusal_reason, tuple(items), runs)
    except ProcessDied:
        return None


def with_item(cover: CoveringArray, item: Item) -> list[Pair]:
    return [pair for pair in cover.pairs() if item in pair]


def run_once(spec: ModelSpec) -> None:
    """Build a model whose values are all 0 and read a text: what can be refused has been then."""
    from llmlab.model.build import assemble, materialise

    model = assemble(spec)
    materialise(model)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()
        model.eval()(subject_from(spec, model).batch())


def subject_from(spec: ModelSpec, model: Model) -> Subject:
    subject = Subject(Case("", ()))
    subject.spec, subject.model = spec, model
    return subject


def _kernels_for_process() -> dict[Item, str]:
    """Kernels that can't train where checks are run, and why."""
    found = {}
    for name in registry.names("kernel"):
        with contextlib.suppress(Exception):  # a crash is for the checks to find
            if why := untrainable(small_part("kernel", name)):
                found["kernel", name] = why
    return found


# ---------------------------------------------------------------- a row as what would be typed


def learning_level(items: Mapping[str, str]) -> Level:
    return tuple((slot, items[slot]) for slot in LEARNING_SLOTS if slot in items)


def base_spec(aim: Level) -> ModelSpec:
    """The base under an objective and a mask. UserError if it can't be trained."""
    from llmlab.config import layout

    items = dict(aim)
    objective = items.get("objective") or _objective_with_mask(items.get("mask")) or _default_objective()
    spec = _composed_spec(objective)
    if (mask := items.get("mask")) not in (None, registry.index()["objective", objective].attribute("mask")):
        spec = with_mask_and_head(spec, mask, None)
        if "objective" in items:
            layout.check_objective(spec, PartSpec("objective", objective))
    return spec


@cache
def _composed_spec(objective: str) -> ModelSpec:
    from llmlab.config import layout

    return layout.resolve(Subject(Case("", _learning_words({"objective": objective}))).composed)


@cache
def _default_objective() -> str:
    return str(Subject(Case("", (f"model={BASE_FAMILIES['decoder']}",))).composed.cfg.objective["_part_"])


def _objective_with_mask(mask: str | None) -> str | None:
    """The objective that brings a mask."""
    found = (n for n in registry.names("objective") if registry.index()["objective", n].attribute("mask") == mask)
    return next(found, None)


def _learning_words(items: Mapping[str, str]) -> tuple[str, ...]:
    """What is typed for an objective and a mask, and the sizes that go with them."""
    objective = items.get("objective") or _objective_with_mask(items.get("mask")) or _default_objective()
    entry = registry.index()["objective", objective]
    topology = (entry.attribute("topologies") or ("decoder",))[0]
    words = [
        f"model={BASE_FAMILIES[topology]}",
        *TINY,
        *WIDTHS,
        f"model.n_layers={4 if topology == 'encoder_decoder' else 2}",
    ]
    words.append(f"objective={objective}")
    if "objective" in items and items.get("mask", entry.attribute("mask")) != entry.attribute("mask"):
        words.append(f"mask={items['mask']}")
    return tuple(words)


def _mask_without_objective(items: Mapping[str, str]) -> str | None:
    """A mask that no objective has to do with."""
    mask = items.get("mask")
    return mask if "objective" not in items and mask is not None and _objective_with_mask(mask) is None else None


def pair_case(name: str, items: Mapping[str, str], more: Iterable[str] = (), about: Sequence[Item] = ()) -> Case:
    """The base with these parts, small. more: what is typed behind them."""
    words = [*_learning_words(items)]
    across = f"model={BASE_FAMILIES['encoder_decoder']}" in words
    for slot, part in items.items():
        if slot in SPECIAL_SLOTS:
            continue
        words += [f"{slot}={part}", *small_options(slot, slot, part)]
        if slot == "attention" and across:
            place = "stacks.decoder.cross_attention"
            words += [f"{slot}@{place}={part}", *small_options(place, slot, part)]
    about = tuple(about or items.items())
    return Case(
        name, last_of_each_key([*words, *more]), "pair", _mask_without_objective(items), items.get("head"), about
    )


def small_options(place: str, slot: str, part: str) -> list[str]:
    """What is typed to make a part small."""
    entry = registry.index().get((slot, part))
    return [f"{place}.{key}={_yaml(value)}" for key, value in (entry.attribute("small") if entry else {}).items()]


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")


def last_of_each_key(words: Sequence[str]) -> tuple[str, ...]:
    """Of those with one key the last, where the first stood."""
    return tuple({w.partition("=")[0]: w for w in words}.values())


# ---------------------------------------------------------------- the same without composing it


def _part_names(spec: ModelSpec) -> dict[str, str]:
    """What stands in each slot of a model whose layers are all alike."""
    last = spec.stacks[-1]
    parts = {**last.layers[0].parts, "embedding": last.embedding, "kernel": spec.kernel, "init": spec.init}
    return {slot: part.name for slot, part in parts.items()} | {"head": next(iter(spec.heads.values())).name}


def with_parts(spec: ModelSpec, items: Mapping[str, str]) -> ModelSpec:
    """The model with these parts in every layer, as the config would have them."""
    from dataclasses import replace

    names = {slot: name for slot, name in items.items() if slot not in SPECIAL_SLOTS}

    def put(old: PartSpec) -> PartSpec:
        """What stands there after SLOT=NAME was typed: one that stands there anyway keeps its options."""
        if old.slot not in names:
            return old
        new = small_part(old.slot, names[old.slot])
        own = registry.index()[new.slot, new.name].attribute("small")
        return new if old.name != new.name else replace(old, options={**old.options, **own})

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
