"""One table of token vectors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Context, Embedding, Linear, Position
from llmlab_plugins.embedding._table import Tabled


@register("embedding", "scaled", scale=True)
@register("embedding", "token")
class TokenEmbedding(Tabled):
    """Token vectors plus the position's, if it has any, then dropout (Vaswani et al. 2017, arXiv:1706.03762).

    ids (B, T) -> (B, T, D). A table narrower than D leads through a linear, before the position is added (OPT-350m).

    scaled: Token vectors times sqrt(D), plus the position's, then dropout (Gemma 2024, arXiv:2403.08295; Vaswani too).
    """

    unused = ("token_types",)
    width_option = "table_width"
    telling = ({"table_width": 10},)

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
        if table_width is not None and table_width < 1:
            raise ValueError(f"embedding.table_width={table_width} must be at least 1")
        width = sizes.dim if table_width is None else table_width
        super().__init__(sizes, position, shared, width, sizes.dim**0.5 if scale else None)
        # Without bias, as `project_in` of OPT-350m (opt/modeling_opt.py).
        self.project = None if self.embed_dim == sizes.dim else Linear(self.embed_dim, sizes.dim, role="other")
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, ids_BT: Tensor, ctx: Context) -> Tensor:
        x_BTD = nn.functional.embedding(ids_BT, self.weight)
        if self.factor is not None:
            # Gemma rounds sqrt(D) to the embedding's type: in bfloat16 sqrt(3072) = 55.43 is 55.5.
            x_BTD = x_BTD * torch.full((), self.factor, dtype=x_BTD.dtype, device=x_BTD.device)
        if self.project is not None:
            x_BTD = self.project(x_BTD)
        # OPT's positions are as wide as the stream, so they are added behind the projection.
        return self.dropout(self.placed(x_BTD, ctx))
