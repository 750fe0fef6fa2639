"""Token vectors, and one vector for all that stands in a second stream."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Context, Embedding, Position, Table


@register("embedding", "two_stream")
class TwoStreamEmbedding(nn.Module):
    """Token vectors, but one vector for all `queries` of the context (XLNet: Yang et al. 2019, arXiv:1906.08237).

    ids (B, T) -> (B, T, D). `queries` (B, T) bool, if the batch has it: what stands in the second stream, whatever its id.
    Plus the position's, if it has any, then dropout.
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
    ):
        super().__init__()
        self.embed_dim = sizes.dim
        object.__setattr__(self, "position", position)
        object.__setattr__(self, "shared", shared)
        if shared is None:
            self.table = Table(sizes.vocab_size, sizes.dim, role="embed")
        self.query = Table(1, sizes.dim, role="embed")
        self.dropout = nn.Dropout(sizes.dropout)

    @property
    def weight(self) -> Tensor:
        return self.table.weight if self.shared is None else self.shared.weight

    def forward(self, ids_BT: Tensor, ctx: Context) -> Tensor:
        x_BTD = nn.functional.embedding(ids_BT, self.weight)
        queries_BT = ctx.data.get("queries", ids_BT.new_zeros(1, 1, dtype=torch.bool))
        x_BTD = torch.where(
            queries_BT[..., None], self.query.weight, x_BTD
        )  # none: its gradient is 0, as DDP needs one
        where = self.position.embed(self.position.ids(ctx))
        if where is not None:
            x_BTD = x_BTD + where.to(x_BTD.dtype)
        return self.dropout(x_BTD)
