"""The cases of `llmlab check`: pairs of parts, families, single parts, and combinations that a user types."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from llmlab import registry
from llmlab.check.combinations import TINY, combinations, last_of_each_key, pair_case, small_options, with_item
from llmlab.check.covering_array import Item, as_words, ordered_pair
from llmlab.check.request import BASE_FAMILY, LEARNING_SLOTS, METHOD_SLOTS, MODEL_SLOTS, SLOTS
from llmlab.check.setting_rows import setting_rows
from llmlab.check.subject import Case, Subject
from llmlab.config import learned
from llmlab.config.model_files import families as every_family
from llmlab.slot_names import place_of

if TYPE_CHECKING:
    from omegaconf import DictConfig

INDEPENDENT_SLOTS = [
    slot for slot in MODEL_SLOTS if slot not in ("objective", "head")
]  # no other key of a config depends on the choice
FAMILY_SIZES = ("model.n_heads=4",)
# For a family with another part. Some parts rotate a share of a head (rope's partial) and split that again (2D positions,
# dual halves), so a head of 8 would leave them less than one pair.
SWAP_SIZES = ("model.head_dim=16",)


def all_pairs() -> list[Case]:
    """Models in which every two parts of two slots occur that can occur together."""
    return list(iterate_pairs())


def iterate_pairs() -> Iterator[Case]:
    """The same one by one, each as soon as the covering array has it."""
    for n, (cover, row) in enumerate(combinations().rows(), 1):
        yield pair_case(f"pair {n}", dict(cover.items(row)))


def pairs_with(item: Item, more: Iterable[str] = ()) -> list[Case]:
    """Models in which a part meets every other that it can be combined with. more: overrides to append."""
    if item[0] in METHOD_SLOTS:
        return [pair_case(as_words([item]), dict([item]), more)]
    cover = combinations().covering(item)
    rows = list(cover.cover(with_item(cover, item)))
    first, reason = cover.usual([item])
    if not rows or reason is not None:
        return [pair_case(as_words([item]), dict(cover.items(first)), more)]
    return [pair_case(f"{as_words([item])}, {n}", dict(cover.items(row)), more) for n, row in enumerate(rows, 1)]


def setting_cases() -> Iterator[Case]:
    """Models in which each setting of a part's options meets the parts that it can interact with."""
    return setting_rows().cases()


def part_cases(slots: Sequence[str] = SLOTS) -> list[Case]:
    """One case for every part: in the base model, changed only where the part needs it."""
    return [part_case((slot, name)) for slot in slots for name in registry.names(slot)]


def part_case(item: Item, more: Iterable[str] = ()) -> Case:
    """The case whose checks are those of the part itself; without a model where no model has the part."""
    slot, name = item
    if slot in METHOD_SLOTS:
        return replace(pair_case(as_words([item]), {slot: name}, more, [item]), kind="part")
    if slot not in MODEL_SLOTS:
        words = (f"model={BASE_FAMILY}", as_words([item]), *small_options(place_of(slot, name), slot, name), *more)
        return Case(as_words([item]), last_of_each_key(words), "part", parts=(item,))
    return replace(combined([item], more), kind="part")


def combined(items: Sequence[Item], more: Iterable[str] = ()) -> Case:
    """One model with these parts: the base model, changed otherwise only where they need it."""
    known = dict(items)
    cover = (
        combinations().covering(next((i for i in items if combinations().alone(i)), items[0]))
        if items
        else combinations().cover
    )
    aims = [item for item in items if item[0] in LEARNING_SLOTS]
    if len(aims) == 2 and ordered_pair(*aims) in combinations().untrainable_pairs:
        return pair_case(as_words(items), known, more, items)  # composing it gives the refusal
    row, _ = cover.usual(items)
    usual, _ = cover.usual([])
    chosen = {
        slot: name for slot, name in cover.items(row) if (slot, name) in items or (slot, name) not in cover.items(usual)
    }
    return pair_case(as_words(items), chosen, more, items)


@cache
def family_cases() -> list[Case]:
    """Every family in a tiny size, with all kinds of its layers."""
    return [family_case(name) for name in every_family()]


def family_case(name: str, more: Sequence[str] = ()) -> Case:
    """A family in a tiny size. more: overrides to append; SLOT=NAME replaces the part everywhere it stands."""
    words, cfg = _tiny_family(name)
    typed = [t for word in more for t in _words_for(word, cfg)]
    slots = {w.partition("=")[0] for w in more}
    parts = tuple((slot, part) for slot, _, part in (w.partition("=") for w in more) if slot in MODEL_SLOTS)
    kept = [*(w for w in words if w.partition(".")[0] not in slots), *(SWAP_SIZES if parts else ())]
    quick = last_of_each_key(kept) if len(more) == 1 and parts and parts[0][0] in INDEPENDENT_SLOTS else None
    return Case(
        " ".join([name, *more]),
        last_of_each_key([*kept, *typed]),
        "swap" if parts else "family",
        parts=parts,
        swap=quick,
    )


def _words_for(word: str, cfg: DictConfig) -> list[str]:
    """Overrides that a word stands for: the part with small options; a head for the role that the objective has first."""
    slot, _, part = word.partition("=")
    if slot == "head":
        role = next(iter(learned.heads(cfg)))
        return [f"{'' if role in cfg.heads else '+'}head@heads.{role}={part}"]
    return [word, *small_options(slot, slot, part)] if slot in MODEL_SLOTS else [word]


@cache
def _tiny_family(name: str) -> tuple[list[str], DictConfig]:
    """Overrides that make a family tiny, and its config with these."""
    words = [f"model={name}", *TINY, *FAMILY_SIZES, "model.n_layers=2"]
    cfg = Subject(Case(name, tuple(words))).composed.cfg
    if len(cfg.stacks) > 1:
        words[-1] = "model.n_layers=4"  # two in each stack
    elif cfg.kinds:
        words[-1] = "model.n_layers=3"  # enough for each kind to occur
    nodes = [("", cfg), *((f"{at}.{kind}.", cfg[at][kind]) for at in ("kinds", "stacks") for kind in cfg[at])]
    for place, node in nodes:
        for slot in (s for s in MODEL_SLOTS if s in node and node[s] is not None):
            words += small_options(f"{place}{slot}", slot, node[slot]["_part_"])
    return words, cfg


def swap_cases(names: Sequence[str] = ()) -> Iterator[Case]:
    """Each of these families, by default all, with each part that it has nowhere."""
    for name in names or every_family():
        has = _parts_of(Subject(family_case(name)))
        for slot in MODEL_SLOTS:
            for part in registry.names(slot):
                if (slot, part) not in has:
                    yield family_case(name, [f"{slot}={part}"])


def _parts_of(subject: Subject) -> set[Item]:
    spec = subject.spec
    found = [spec.kernel, spec.init, *spec.heads.values()]
    for stack in spec.stacks:
        found += [stack.mask, stack.embedding, *(p for layer in stack.layers for p in layer.parts.values())]
    learnt = learned.entry(subject.composed.cfg)
    return {(p.slot, p.name) for p in found} | {(learnt.slot, learnt.name)}
