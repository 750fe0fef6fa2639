"""Names of the slots, and the empty base of every part's config. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Part:
    """Base of every part's config. `_part_` is the registered name; the field that holds it says which slot it is of."""

    # OmegaConf's word for a value that must be given.
    _part_: str = "???"


# Slots that a kind of layer or a stack may set for itself.
LAYER_SLOTS = ("position", "norm", "block", "attention", "window", "ffn", "moe")
# Slots that are one for the whole model.
MODEL_SLOTS = ("embedding", "mask", "kernel", "init", "adapter")
RECIPE_SLOTS = ("objective", "alignment", "reward", "optimizer", "schedule")
# Slots of which any number of parts is chosen, in an order: filter=[length,duplicates].
LISTED_SLOTS = ("filter",)
# Slots of what a run learns by, of which one part takes the place of the other.
LEARNED_SLOTS = ("objective", "alignment")
# Sizes that a stack may set for itself; None: the model's.
STACK_SIZES = ("dim", "n_heads", "n_kv_heads", "head_dim", "ffn_dim")
SLOTS = (*LAYER_SLOTS, *MODEL_SLOTS, *RECIPE_SLOTS, *LISTED_SLOTS, "head")


def place_of(slot: str, name: str) -> str:
    """The place of a part in a config where it is chosen once: "norm" of norm=rmsnorm, "filter.length" of filter=length."""
    return f"{slot}.{name}" if slot in LISTED_SLOTS else slot


def slot_at(place: str) -> str:
    """The slot of the part at a place of a config: "norm" at `kinds.local.norm`, "head" at `heads.tokens`."""
    parent, _, last = place.rpartition(".")
    if parent in LISTED_SLOTS:
        return parent
    return "head" if parent == "heads" else "attention" if last == "cross_attention" else last
