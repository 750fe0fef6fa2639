"""A norm that observers give to parts which take one: w x / sqrt(mean(x^2) + eps) + b."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SimpleNorm(nn.Module):
    """x (..., dim) -> (..., dim), with the parameters `weight` and `bias` (dim,)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.empty(dim)), nn.Parameter(torch.empty(dim))
        self.constants = {"weight": 1.0}

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt() + self.bias
