"""An embedding of your own: how ids become vectors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor, nn

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Context, Embedding, Position, Table
from llmlab.twins import Given, twin


@register("embedding", "my_embedding")
class MyEmbedding(nn.Module):
    """Token vectors times `scale`, plus the position's, then dropout (Vaswani et al. 2017, arXiv:1706.03762).

    ids (B, T) -> (B, T, D). `shared` is the embedding of the encoder where this is the decoder's: they have one table.
    """

    # Typing this key together with this part is an error, as it would have no effect.
    unused = ("token_types",)
    position: Position
    shared: Embedding | None
    telling = ({"scale": 3.0},)

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


# Not of the class: `llmlab check` holds the part to what this says, at every setting of its options. What a twin is given, and
# which outputs it may give, is listed in the docstring of llmlab.check.twins.observers.embedding.
@twin("embedding", "my_embedding", source="Vaswani et al. 2017, section 3.4")
def definition(given: Given) -> dict[str, np.ndarray]:
    ids, scale, table = given.inputs["ids"], given.options["scale"], given.weights["table.weight"]
    places = given.inputs["places"][-ids.shape[1] :]  # the text stands at the last of them
    return {
        "alone": scale * table[ids],
        "placed": scale * table[ids] + places,
        "shared": scale * given.inputs["shared"][ids] + places,
        "weight": table,
    }
