"""Token vectors, and one vector for all that stands in a second stream."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Context, Embedding, Position, Table
from llmlab_plugins.embedding._table import Tabled


@register("embedding", "two_stream")
class TwoStreamEmbedding(Tabled):
    """Token vectors, but one vector for all `queries` of the context (XLNet: Yang et al. 2019, arXiv:1906.08237).

    ids (B, T) -> (B, T, D). `queries` (B, T) bool, if the batch has it: what stands in the second stream, whatever its id.
    Plus the position's, if it has any, then dropout.
    """

    unused = ("token_types",)
    idle = ("query.weight",)

    def __init__(
        self,
        sizes: Sizes,
        position: Position,
        norm: Callable[[int, float], nn.Module],
        shared: Embedding | None,
        /,
    ):
        super().__init__(sizes, position, shared, sizes.dim)
        # XLNet's `mask_emb`: the second stream must not know which token it asks for, only where it stands.
        self.query = Table(1, sizes.dim, role="embed")
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, ids_BT: Tensor, ctx: Context) -> Tensor:
        x_BTD = nn.functional.embedding(ids_BT, self.weight)
        # A mask reads them of all keys, a memory's among them, which come first.
        queries_BT = ctx.data.get("queries", ids_BT.new_zeros(1, 1, dtype=torch.bool))[:, -ids_BT.shape[1] :]
        # Where nothing asks the vector still has a gradient, of 0: DDP waits for one from every parameter.
        x_BTD = torch.where(queries_BT[..., None], self.query.weight, x_BTD)
        return self.dropout(self.placed(x_BTD, ctx))
