"""Twins: slow implementations of a part's definition, written from its paper and not from the part, in NumPy and float64.

`llmlab check` gives a twin what it gave the part (`Given`) and compares what both make of it:

    @twin("norm", "my_norm", source="the paper's equation 4")
    def definition(given):
        x, weight = given.inputs["x"], given.weights["weight"]
        return {"x": weight * x / np.sqrt((x**2).mean(-1, keepdims=True) + given.sizes.norm_eps)}

A twin may leave outputs out, which are not compared then. An output NAME that is a mean over random draws is compared up to
what the twin gives as NAME + CHANCE. The inputs and outputs of each slot are listed in the docstrings of
`llmlab.check.twins.observers`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from llmlab.sizes import Sizes

    Arrays = Mapping[str, np.ndarray]


CHANCE = " +-"  # behind an output's name: how far a part may be from it by chance, absolute


@dataclass(frozen=True)
class Given:
    """What a part was built from and called with.

    `options`: all options of the part, defaults included. `inputs`: arrays of float64, int64 or bool, by name. `weights`: the
    part's parameters and buffers in float64, by path.
    """

    options: Mapping[str, Any]
    sizes: Sizes
    inputs: Arrays
    weights: Arrays


Compute = Callable[[Given], "Arrays"]


@dataclass(frozen=True)
class Twin:
    """A twin and where its formula is from."""

    compute: Compute
    source: str


_TWINS: dict[tuple[str, str], Twin] = {}


def twin(slot: str, name: str, *, source: str) -> Callable[[Compute], Compute]:
    """Decorator: the function is the twin of this part. source: the paper and equation, or the implementation and version."""

    def add(compute: Compute) -> Compute:
        _TWINS[slot, name] = Twin(compute, source)
        return compute

    return add


def twin_of(slot: str, name: str) -> Twin | None:
    """The twin of a part; None if none has been defined."""
    return _TWINS.get((slot, name))
