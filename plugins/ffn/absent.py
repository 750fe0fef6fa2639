"""No feed-forward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from llmlab.registry import register


@register("ffn", "none")
class NoFeedForward(nn.Module):
    """No feed-forward: a layer has its attention alone, as a stack of LSTMs. By itself x (..., dim) -> zeros (..., dim)."""

    absent = True
    unused = ("ffn.bias", "ffn.dropout")

    def __init__(self, dim: int, ffn_dim: int, linear: Callable[..., nn.Module], /):
        super().__init__()

    def forward(self, x: Tensor, groups: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x)
