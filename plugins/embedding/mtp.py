"""Tokens joined to hidden states of another model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Context, Embedding, Linear, Position
from llmlab_plugins.embedding._table import Tabled


@register("embedding", "mtp")
class MultiTokenEmbedding(Tabled):
    """The input of a module that predicts further ahead (DeepSeek-V3: DeepSeek-AI 2024, arXiv:2412.19437, equation 21).

    ids (B, T) and `hidden` (B, T, D) of the batch -> (B, T, D): both normed, side by side, through a linear from 2 D to D.
    Token vectors have the position's added and dropout first. Hidden states that a batch lacks count as 0.
    """

    unused = ("token_types",)
    idle = ("hidden_norm.weight", "hidden_norm.bias")

    def __init__(
        self,
        sizes: Sizes,
        position: Position,
        norm: Callable[[int, float], nn.Module],
        shared: Embedding | None,
        /,
    ):
        super().__init__(sizes, position, shared, sizes.dim)
        self.hidden_norm = norm(sizes.dim, sizes.norm_eps)
        self.token_norm = norm(sizes.dim, sizes.norm_eps)
        self.project = Linear(2 * sizes.dim, sizes.dim, role="other")
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, ids_BT: Tensor, ctx: Context) -> Tensor:
        x_BTD = self.dropout(self.placed(nn.functional.embedding(ids_BT, self.weight), ctx))
        hidden_BTD = ctx.data.get("hidden")
        if hidden_BTD is None:
            hidden_BTD = torch.zeros_like(x_BTD)
        return self.project(torch.cat([self.hidden_norm(hidden_BTD), self.token_norm(x_BTD)], -1))
