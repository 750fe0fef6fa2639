"""A window of your own: how far a token looks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from llmlab.registry import register


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

    def __post_init__(self) -> None:
        if self.left < 1 or self.sinks < 0:
            raise ValueError(f"window.left={self.left} must be at least 1 and window.sinks={self.sinks} at least 0")

    def covers(self, length: int) -> bool:
        """True if it hides nothing among so many tokens: then it costs nothing either."""
        # A token then sees `left` tokens up to itself, and all that come before those are sinks.
        return length <= self.left + self.sinks

    def allowed(self, q: Tensor, k: Tensor, data: Mapping[str, Tensor]) -> Tensor:
        return (k > q - self.left) | (k < self.sinks)

    def sees(self, q: int, k: int, row: Mapping[str, Any]) -> bool:
        """The same of one pair in plain Python, to which `llmlab check` holds the rest."""
        return q - k < self.left or k in range(self.sinks)
