"""Twins: reference implementations of parts, written from a paper's formula in NumPy and float64, not from the part's code.

`llmlab check` gives the twin what it gave the part (`Given`) and compares their outputs by name:

    @twin("norm", "my_norm", source="the paper's equation 4")
    def definition(given):
        x, weight = given.inputs["x"], given.weights["weight"]
        return {"x": weight * x / np.sqrt((x**2).mean(-1, keepdims=True) + given.sizes.norm_eps)}

The inputs and outputs of each slot are listed in the docstrings of `llmlab.check.twins.observers`. An output that a twin leaves
out is not compared. If an output NAME is a mean over random draws, the twin also gives NAME + CHANCE, the largest difference
that chance explains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from llmlab.sizes import Sizes

    Arrays = Mapping[str, np.ndarray]


CHANCE = " +-"  # suffix of an output's name: the largest absolute difference that chance explains


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
    """A twin and the source of its formula."""

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
