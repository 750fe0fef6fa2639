"""One table of token vectors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Context, Embedding, Linear, Position, Table


@register("embedding", "scaled", scale=True)
@register("embedding", "token")
class TokenEmbedding(nn.Module):
    """Token vectors plus the position's, if it has any, then dropout (Vaswani et al. 2017, arXiv:1706.03762).

    ids (B, T) -> (B, T, D). A table narrower than D leads through a linear, before the position is added (OPT-350m).

    scaled: Token vectors times sqrt(D), plus the position's, then dropout (Gemma 2024, arXiv:2403.08295; Vaswani too).
    """

    unused = ("token_types",)
    position: Position
    shared: Embedding | None

    def __init__(
        self,
        sizes: Sizes,
        position: Position,
        norm: Callable[[int, float], nn.Module],
        shared: Embedding | None,
        /,
        *,
        scale: bool = False,  # token vectors times sqrt(D), rounded to their dtype
        table_width: int | None = None,  # of the table, where it is not D
    ):
        super().__init__()
        self.embed_dim = sizes.dim if table_width is None else table_width
        if self.embed_dim < 1:
            raise ValueError(f"embedding.table_width={table_width} must be at least 1")
        self.factor = sizes.dim**0.5 if scale else None
        object.__setattr__(self, "position", position)
        object.__setattr__(self, "shared", shared)
        if shared is None:
            self.table = Table(sizes.vocab_size, self.embed_dim, role="embed")
        self.project = None if self.embed_dim == sizes.dim else Linear(self.embed_dim, sizes.dim, role="other")
        self.dropout = nn.Dropout(sizes.dropout)

    @property
    def weight(self) -> Tensor:
        return self.table.weight if self.shared is None else self.shared.weight

    def forward(self, ids_BT: Tensor, ctx: Context) -> Tensor:
        x_BTD = nn.functional.embedding(ids_BT, self.weight)
        if self.factor is not None:
            x_BTD = x_BTD * torch.full((), self.factor, dtype=x_BTD.dtype, device=x_BTD.device)
        if self.project is not None:
            x_BTD = self.project(x_BTD)
        where = self.position.embed(self.position.ids(ctx))
        if where is not None:
            x_BTD = x_BTD + where.to(x_BTD.dtype)
        return self.dropout(x_BTD)
