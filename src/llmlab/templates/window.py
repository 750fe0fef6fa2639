"""A window of your own: how far a token looks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from llmlab.registry import register
from llmlab.twins import Given, twin


@register("window", "my_window")
@dataclass(frozen=True, kw_only=True)
class MyWindow:
    """Dilated sliding window (Longformer: Beltagy et al. 2020, arXiv:2004.05150): every other one of the tokens before.

    q (T, 1) and k (1, S) are absolute slots; returns (T, S) bool. In which direction, the mask says.

    left: tokens seen up to the token itself, which counts
    dilation: how far these are from each other; 1: a plain window
    """

    left: int = 64
    dilation: int = 2
    pattern = None  # neither plainly causal nor full: a kernel gets the mask as a tensor
    needs = ()
    small = {"left": 3}  # with which a text of a dozen tokens is longer than what is seen
    telling = ({"left": 2}, {"dilation": 1}, {"dilation": 3})

    def __post_init__(self) -> None:
        if self.left < 1 or self.dilation < 1:
            raise ValueError(f"window.left={self.left} and window.dilation={self.dilation} must be at least 1")

    def covers(self, length: int) -> bool:
        """True if it hides nothing among so many tokens: then it costs nothing either."""
        # A token hides its neighbour unless the dilation is 1.
        return length <= (self.left if self.dilation == 1 else 1)

    def allowed(self, q: Tensor, k: Tensor, data: Mapping[str, Tensor]) -> Tensor:
        # By distance alone: the first slots of a row may be padding, or another document.
        return (k > q - self.left * self.dilation) & ((q - k) % self.dilation == 0)

    def sees(self, q: int, k: int, row: Mapping[str, Any]) -> bool:
        """The same of one pair in plain Python, to which `llmlab check` holds the rest."""
        return (q - k) % self.dilation == 0 and (q - k) // self.dilation < self.left


# Not of the class: `llmlab check` holds the part to what this says, at every setting of its options. What a twin is given, and
# which outputs it may give, is listed in the docstring of llmlab.check.twins.observers.visibility.
@twin("window", "my_window", source="Beltagy et al. 2020, figure 2c")
def definition(given: Given) -> dict[str, np.ndarray]:
    left, dilation = given.options["left"], given.options["dilation"]
    rows, length = given.inputs["rank"].shape
    distances = [i * dilation for i in range(-length, left)]
    sees = np.array([[q - k in distances for k in range(2 * length)] for q in range(2 * length)])
    whole = np.array([sees[:length, :length]] * rows)
    covers = np.array([sees[:n, :n].all() for n in range(1, 2 * length + 1)])
    return {"whole": whole, "later": whole[:, -3:], "covers": covers}
