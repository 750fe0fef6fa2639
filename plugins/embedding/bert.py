"""Token, segment and position vectors, normed; and the same in a smaller width, projected."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Context, Embedding, Linear, Position, Table
from llmlab_plugins.embedding._table import Tabled


@register("embedding", "factorized", project=True)
@register("embedding", "bert")
class BertEmbedding(Tabled):
    """Token + segment + position vectors, normed, then dropout (BERT: Devlin et al. 2018, arXiv:1810.04805).

    ids (B, T) -> (B, T, D). Segments that the context lacks count as 0; with `model.token_types` 0 there are none. Tables of
    another `width` than D lead through a linear with bias (ELECTRA: Clark et al. 2020, arXiv:2003.10555).

    factorized: BERT's embedding, `width` wide, then a linear with bias to D (ALBERT: Lan et al. 2019, arXiv:1909.11942).
    """

    width_option = "width"
    telling = ({"pad_id": 1}, {"width": 6})

    @staticmethod
    def width(
        sizes: Sizes,
        *,
        project: bool = False,
        width: int | None = None,
        scale: bool = False,
        pad_id: int | None = None,
    ) -> int:
        if width is None and not project:
            return sizes.dim
        if width is not None and width < 1:
            raise ValueError(f"embedding.width={width} must be at least 1")
        return width or max(16, sizes.dim // 4)

    def __init__(
        self,
        sizes: Sizes,
        position: Position,
        norm: Callable[[int, float], nn.Module],
        shared: Embedding | None,
        /,
        *,
        project: bool = False,  # from a width of its own to D, also where that is D
        width: int | None = None,  # of the tables; None: D, and if projected D / 4, at least 16
        scale: bool = False,  # token vectors times the root of their width (BART's option)
        pad_id: int | None = None,  # a token whose vector is not trained by being looked up
    ):
        embed_dim = self.width(sizes, project=project, width=width)
        super().__init__(sizes, position, shared, embed_dim, embed_dim**0.5 if scale else None)
        self.pad_id = pad_id
        self.segments = Table(sizes.token_types, embed_dim, role="embed") if sizes.token_types else None
        self.norm = norm(embed_dim, sizes.norm_eps)
        self.dropout = nn.Dropout(sizes.dropout)
        self.project = Linear(embed_dim, sizes.dim, True, role="other") if project or embed_dim != sizes.dim else None

    def forward(self, ids_BT: Tensor, ctx: Context) -> Tensor:
        # `padding_idx` only takes that row's gradient away; its vector is
        # still added, as by Hugging Face's `nn.Embedding(padding_idx=...)`.
        x_BTE = nn.functional.embedding(ids_BT, self.weight, self.pad_id)
        if self.factor is not None:
            x_BTE = x_BTE * self.factor
        if self.segments is not None:
            # BERT adds row 0 where it is given no token types, so leaving it out would shift every vector.
            x_BTE = x_BTE + self.segments(torch.zeros_like(ids_BT) if ctx.segments is None else ctx.segments)
        x_BTE = self.dropout(self.norm(self.placed(x_BTE, ctx)))
        # The projection comes last: ALBERT has it in the encoder (`embedding_hidden_mapping_in`), behind norm and dropout.
        return x_BTE if self.project is None else self.project(x_BTE)
