"""A mask of your own: in which direction a token looks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from llmlab.registry import register
from llmlab.twins import Given, twin


@register("mask", "my_mask")
@dataclass(frozen=True, kw_only=True)
class MyMask:
    """Limited look-ahead (Zhang et al. 2020, arXiv:2002.02562): a token sees those before it, and a few of those behind.

    q (T, 1) and k (1, S) are absolute slots; returns (T, S) bool. A mask that looks ahead can't be trained with
    objective=clm, which predicts the next token. How far a token looks, the window says.

    ahead: tokens seen that come behind
    """

    ahead: int = 4
    pattern = None  # "causal" or "full" where it is just that
    needs = ()  # names of what it reads from `data`, which the objective then gives
    telling = ({"ahead": 1},)

    def __post_init__(self) -> None:
        if self.ahead < 0:
            raise ValueError(f"mask.ahead={self.ahead} must be at least 0")

    def allowed(self, q: Tensor, k: Tensor, data: Mapping[str, Tensor]) -> Tensor:
        # By distance alone: the first slots of a row may be padding, or another document.
        return k <= q + self.ahead

    def sees(self, q: int, k: int, row: Mapping[str, Any]) -> bool:
        """The same of one pair in plain Python, to which `llmlab check` holds the rest. row: data of a row, in lists."""
        return k in range(q + self.ahead + 1)


# Not of the class: `llmlab check` holds the part to what this says, at every setting of its options. What a twin is given, and
# which outputs it may give, is listed in the docstring of llmlab.check.twins.observers.visibility.
@twin("mask", "my_mask", source="Zhang et al. 2020, limited right context")
def definition(given: Given) -> dict[str, np.ndarray]:
    rows, length = given.inputs["rank"].shape
    sees = [[k - q <= given.options["ahead"] for k in range(length)] for q in range(length)]
    return {"whole": np.array([sees] * rows), "later": np.array([sees[-3:]] * rows)}
