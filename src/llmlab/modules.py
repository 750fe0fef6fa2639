"""Modules that parts are made of, which say their parameters' role. `llmlab.slots` offers them to parts."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Role = Literal[
    "embed", "position", "q", "k", "v", "out", "ffn_in", "ffn_out", "router", "head", "norm", "bias", "adapter", "other"
]


class Linear(nn.Linear):
    """nn.Linear with a role; `dropout` is on its input. `groups` is accepted and ignored, so that an FFN is written once
    for dense and experts.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = False, *, role: Role, dropout: float = 0.0):
        super().__init__(in_features, out_features, bias)
        self.role, self.dropout = role, dropout

    def forward(self, x: Tensor, groups: Tensor | None = None) -> Tensor:
        if self.dropout:
            # A function: nn.Dropout would be one more module, with a call of its own, in every linear.
            x = F.dropout(x, self.dropout, self.training)
        return F.linear(x, self.weight, self.bias)


class Table(nn.Module):
    """A table of vectors (rows, width), looked up by id. Weight (rows, width). gain: what its owner multiplies them by."""

    def __init__(self, rows: int, width: int, *, role: Role = "embed", gain: float = 1.0):
        super().__init__()
        # Not nn.Embedding, which draws first values when it is built: those come by role from the init part.
        self.weight = nn.Parameter(torch.empty(rows, width))
        self.role, self.gain = role, gain

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class SplitTable(nn.Module):
    """A table of vectors base + delta, of which `base` is another model's to read and to move: a gradient of `weight` goes to
    the delta alone, which begins at 0. Weight (rows, width)."""

    constants = {"delta": 0.0}
    drawn_as = {"base": "weight"}  # the parameter whose first values it has: those of a table that is not split

    def __init__(self, rows: int, width: int, *, role: Role = "embed", gain: float = 1.0):
        super().__init__()
        self.base = nn.Parameter(torch.empty(rows, width))
        self.delta = nn.Parameter(torch.empty(rows, width))
        self.role, self.gain = role, gain

    @property
    def weight(self) -> Tensor:
        return self.base.detach() + self.delta

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)
