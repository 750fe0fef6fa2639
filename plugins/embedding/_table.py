"""The base of every embedding: a table of token vectors, its own or an earlier stack's, and a position to add."""

from __future__ import annotations

from torch import Tensor, nn

from llmlab.sizes import Sizes
from llmlab.slots import Context, Embedding, Position, Table


class Tabled(nn.Module):
    """`table` (V, width), or the tables of `shared`, which is not a child of this module, as its position is not.

    Its vectors are multiplied by `factor`, if there is one.
    """

    position: Position
    shared: Embedding | None

    def __init__(
        self, sizes: Sizes, position: Position, shared: Embedding | None, width: int, factor: float | None = None
    ):
        super().__init__()
        self.embed_dim, self.factor = width, factor
        # nn.Module would register both as children, and their parameters would be in the state twice.
        object.__setattr__(self, "position", position)
        object.__setattr__(self, "shared", shared)
        if shared is None:
            # init=t5 divides by the gain: a tied table that is multiplied by sqrt(D) would begin by repeating its input.
            self.table = Table(sizes.vocab_size, width, role="embed", gain=factor or 1.0)

    @property
    def weight(self) -> Tensor:
        return self.table.weight if self.shared is None else self.shared.weight

    def placed(self, x_BTE: Tensor, ctx: Context) -> Tensor:
        """Plus the position's vectors, if it has any."""
        where = self.position.embed(self.position.ids(ctx))
        # Sinusoids come in float32, and a bfloat16 stream plus them would be float32 in all layers.
        return x_BTE if where is None else x_BTE + where.to(x_BTE.dtype)
