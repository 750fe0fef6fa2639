"""An embedding of your own: how ids become vectors."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Context, Embedding, Position, Table


@register("embedding", "my_embedding")
class MyEmbedding(nn.Module):
    """Token vectors times `scale`, plus the position's, then dropout (Vaswani et al. 2017, arXiv:1706.03762).

    ids (B, T) -> (B, T, D). `shared` is the embedding of the encoder where this is the decoder's: they have one table.
    """

    # Typing this key together with this part is an error, as it would have no effect.
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
        scale: float = 1.0,  # of token vectors
    ):
        super().__init__()
        self.embed_dim, self.scale = sizes.dim, scale
        # Set past nn.Module, which would take them for children: their parameters are others' and would be there twice.
        object.__setattr__(self, "position", position)
        object.__setattr__(self, "shared", shared)
        if shared is None:
            self.table = Table(sizes.vocab_size, sizes.dim, role="embed")
        self.dropout = nn.Dropout(sizes.dropout)

    @property
    def weight(self) -> Tensor:
        """(V, D): what a tied head reads too."""
        return self.table.weight if self.shared is None else self.shared.weight

    def forward(self, ids_BT: Tensor, ctx: Context) -> Tensor:
        x_BTD = self.scale * nn.functional.embedding(ids_BT, self.weight)
        where: Tensor | None = self.position.embed(self.position.ids(ctx))
        # Tables of sines are float32, and would make the stream so under bf16-true.
        return self.dropout(x_BTD if where is None else x_BTD + where.to(x_BTD.dtype))
