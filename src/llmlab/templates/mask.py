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
    """Block-causal (Arriola et al. 2025, arXiv:2503.09573): a token sees all of its own chunk and of those before it.

    q (T, 1) and k (1, S) are absolute slots; returns (T, S) bool. A mask that looks ahead can't be trained with
    objective=clm, which predicts the next token. How far a token looks, the window says.

    chunk: tokens of a chunk
    """

    chunk: int = 16
    pattern = None  # "causal" or "full" where it is just that
    needs = ()  # names of what it reads from `data`, which the objective then gives
    small = {"chunk": 4}
    telling = ({"chunk": 3},)

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ValueError(f"mask.chunk={self.chunk} must be at least 1")

    def allowed(self, q: Tensor, k: Tensor, data: Mapping[str, Tensor]) -> Tensor:
        # Slots are absolute: with a cache q does not begin at 0.
        return k // self.chunk <= q // self.chunk

    def sees(self, q: int, k: int, row: Mapping[str, Any]) -> bool:
        """The same of one pair in plain Python, to which `llmlab check` holds the rest. row: data of a row, in lists."""
        return k < q - q % self.chunk + self.chunk


# Not of the class: `llmlab check` holds the part to what this says, at every setting of its options. What a twin is given, and
# which outputs it may give, is listed in the docstring of llmlab.check.twins.observers.visibility.
@twin("mask", "my_mask", source="Arriola et al. 2025, section 3.1")
def definition(given: Given) -> dict[str, np.ndarray]:
    chunk = given.options["chunk"]
    rows, length = given.inputs["rank"].shape
    sees = [[k // chunk <= q // chunk for k in range(length)] for q in range(length)]
    return {"whole": np.array([sees] * rows), "later": np.array([sees[-3:]] * rows)}
