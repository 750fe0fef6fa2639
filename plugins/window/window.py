"""Limits to the distance at which a token looks. q (T, 1) and k (1, S) are absolute places in the text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmlab.registry import register


@register("window", "full")
@dataclass(frozen=True)
class Full:
    """No limit to the distance (Vaswani et al. 2017, arXiv:1706.03762). Returns (T, S) bool."""

    pattern = "full"
    needs = ()
    relative = True

    def covers(self, length: int) -> bool:
        return True

    def allowed(self, q: Tensor, k: Tensor, data: Mapping[str, Tensor]) -> Tensor:
        return torch.ones(len(q), k.shape[-1], dtype=torch.bool, device=k.device)

    def sees(self, q: int, k: int, row: Mapping[str, Any]) -> bool:
        return True


# Frozen, so that windows with equal options hash alike: a stack lowers one mask for all layers that share one.
@register("window", "sliding")
@dataclass(frozen=True, kw_only=True)
class Sliding:
    """Sliding window (Longformer: Beltagy et al. 2020, arXiv:2004.05150): q - left < k <= q + right.

    left: tokens seen up to the token itself, which counts (Mistral's and Gemma's `sliding_window`)
    right: tokens seen after it; None: no limit, which is right under a causal mask
    """

    left: int = 64
    right: int | None = None
    small = {"left": 3}
    telling = ({"left": 4, "right": 2}, {"right": 0})
    pattern = None
    needs = ()
    relative = True

    def __post_init__(self) -> None:
        if self.left < 1 or (self.right is not None and self.right < 0):
            raise ValueError(
                f"window.left must be at least 1 and window.right at least 0, but they are {self.left} and {self.right}"
            )

    def covers(self, length: int) -> bool:
        return length <= self.left and (self.right is None or length - 1 <= self.right)

    def allowed(self, q: Tensor, k: Tensor, data: Mapping[str, Tensor]) -> Tensor:
        # Mistral's window of w holds w tokens with the query's own: `kv_idx
        # > q_idx - sliding_window` in transformers' masking_utils.
        near = k > q - self.left
        return near if self.right is None else near & (k <= q + self.right)

    def sees(self, q: int, k: int, row: Mapping[str, Any]) -> bool:
        if k > q:
            return self.right is None or k - q <= self.right
        return q - k < self.left


@register("window", "strided")
@dataclass(frozen=True, kw_only=True)
class Strided:
    """Locally banded and strided (Sparse Transformer: Child et al. 2019, arXiv:1904.10509; GPT-3): near, or stride steps off.

    stride: tokens whose distance it divides are seen at any distance
    left: tokens seen up to the token itself, which counts, and as many after it; None: stride
    """

    stride: int = 16
    left: int | None = None
    small = {"stride": 3}
    telling = ({"stride": 4, "left": 2}, {"left": 5}, {"left": 6})
    pattern = None
    needs = ()
    relative = True

    def __post_init__(self) -> None:
        if self.stride < 1 or (self.left is not None and self.left < 1):
            raise ValueError(
                f"window.stride and window.left must be at least 1, but they are {self.stride} and {self.left}"
            )

    def covers(self, length: int) -> bool:
        left = self.left or self.stride
        # At a distance of `left` a key is seen after all where the stride divides it.
        return self.stride == 1 or length <= left + (left % self.stride == 0)

    def allowed(self, q: Tensor, k: Tensor, data: Mapping[str, Tensor]) -> Tensor:
        distance = (q - k).abs()
        return (distance < (self.left or self.stride)) | (distance % self.stride == 0)

    def sees(self, q: int, k: int, row: Mapping[str, Any]) -> bool:
        left = self.stride if self.left is None else self.left
        return k in range(q - left + 1, q + left) or k % self.stride == q % self.stride
