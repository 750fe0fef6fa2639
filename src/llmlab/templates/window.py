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
    """Sliding window with sinks (StreamingLLM: Xiao et al. 2023, arXiv:2309.17453): what is near, and the first tokens.

    q (T, 1) and k (1, S) are absolute slots; returns (T, S) bool. In which direction, the mask says.

    left: tokens seen up to the token itself, which counts
    sinks: tokens at the beginning that all see
    """

    left: int = 64
    sinks: int = 4
    pattern = None  # neither plainly causal nor full: a kernel gets the mask as a tensor
    needs = ()
    small = {"left": 3, "sinks": 2}
    telling = ({"left": 4}, {"sinks": 1})

    def __post_init__(self) -> None:
        if self.left < 1 or self.sinks < 0:
            raise ValueError(f"window.left={self.left} must be at least 1 and window.sinks={self.sinks} at least 0")

    def covers(self, length: int) -> bool:
        """True if it hides nothing among so many tokens: then it costs nothing either."""
        # A token then sees `left` behind itself, and all that is before those is a sink.
        return length <= self.left + self.sinks

    def allowed(self, q: Tensor, k: Tensor, data: Mapping[str, Tensor]) -> Tensor:
        return (k > q - self.left) | (k < self.sinks)

    def sees(self, q: int, k: int, row: Mapping[str, Any]) -> bool:
        """The same of one pair in plain Python, to which `llmlab check` holds the rest."""
        return q - k < self.left or k in range(self.sinks)


# Not of the class: `llmlab check` holds the part to what this says, at every setting of its options. What a twin is given, and
# which outputs it may give, is listed in the docstring of llmlab.check.twins.observers.visibility.
@twin("window", "my_window", source="Xiao et al. 2023, figure 1d")
def definition(given: Given) -> dict[str, np.ndarray]:
    left, sinks = given.options["left"], given.options["sinks"]
    rows, length = given.inputs["rank"].shape
    near = [[k > q - left or k < sinks for k in range(length)] for q in range(length)]
    covers = [all(q - k < left or k < sinks for q in range(n) for k in range(q)) for n in range(1, 2 * length + 1)]
    return {"whole": np.array([near] * rows), "later": np.array([near[-3:]] * rows), "covers": np.array(covers)}
