"""Positions that are added to the embedding, and none."""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Context, Position, Table


def tokens_before(ctx: Context) -> Tensor:
    """Position ids that count what is not padding: (B, T), or (T,) without padding. The caller's own, if any.

    Padding has the id of the last token before it, -1 if there is none.
    """
    if ctx.positions is not None or ctx.valid is None:
        return Position().ids(ctx)
    return ctx.valid.long().cumsum(-1)[:, ctx.offset :] - 1


def begins(documents_BT: Tensor) -> Tensor:
    """(B, T) bool: whether a token is the first of its document."""
    first = torch.ones_like(documents_BT, dtype=torch.bool)
    first[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    return first


@register("position", "none")
class NoPosition(Position):
    """No position at all: a causal model learns order from its mask (Haviv et al. 2022, arXiv:2203.16634)."""

    def __init__(self, sizes: Sizes, /):
        super().__init__()


class Absolute(Position):
    """Position ids that begin anew with each document where the context keeps documents apart.

    Relative positions need no such thing: between tokens of one document they are the same.
    """

    _skip_padding = False

    def ids(self, ctx: Context) -> Tensor:
        if ctx.positions is not None:
            return super().ids(ctx)
        if not self._skip_padding or ctx.valid is None:
            return self.of_documents(super().ids(ctx), ctx)
        return self.of_documents(tokens_before(ctx), ctx, ctx.valid[:, ctx.offset :])

    def of_documents(self, ids: Tensor, ctx: Context, counts_BT: Tensor | None = None) -> Tensor:
        """Ids that begin anew with each document. counts_BT: the tokens that `ids` count; None: all of them."""
        if ctx.documents is not None:
            # A document may begin with padding, whose id is that of the token before it, not of the one behind it.
            next_ids = ids if counts_BT is None else torch.where(counts_BT, ids, ids + 1)
            # cummax holds the place at which the document of each token began, without a loop over documents.
            ids = ids - (next_ids * begins(ctx.documents)[:, ctx.offset :]).cummax(-1).values
        # Padding before the first token has -1, which is a row of no table; nobody sees what it gives.
        return ids if counts_BT is None else ids.clamp(min=0)


@register("position", "learned")
class Learned(Absolute):
    """A learnt vector for each of `model.max_positions` positions (BERT, GPT-2: Gehring et al. 2017, arXiv:1705.03122).

    ids (T,) or (B, T) -> (T, E) or (B, T, E). A longer sequence is a ValueError. With `pad_id` the ids are rows of the
    table, `offset` the first position's, as RoBERTa counts them (Liu et al. 2019, arXiv:1907.11692); positions that a batch
    has count from 0 there too.
    """

    telling = ({"offset": 2},)

    def __init__(
        self,
        sizes: Sizes,
        /,
        *,
        offset: int = 0,  # rows of the table before that of the first position (OPT: 2)
        skip_padding: bool = False,  # positions count tokens that are not padding (OPT)
        pad_id: int | None = None,  # padding is this id, whatever is masked, and has the row before the first (RoBERTa)
    ):
        super().__init__()
        if offset < 0 or (pad_id is not None and offset < 1):
            raise ValueError(f"position.offset={offset} must be at least {0 if pad_id is None else 1}")
        self.rows, self.offset, self._skip_padding = sizes.max_positions, offset, skip_padding
        self.pad_id = pad_id
        # RoBERTa's 514 rows are 512 positions behind padding_idx 1, OPT's 2,050 are 2,048 behind an offset of 2.
        self.table = Table(sizes.max_positions + offset, sizes.embed_dim, role="position")

    def ids(self, ctx: Context) -> Tensor:
        if ctx.positions is None and ctx.keys > self.rows:
            raise ValueError(
                f"{ctx.keys} positions are needed, but position=learned has model.max_positions={self.rows}; "
                "train with more of them, or with position=rope"
            )
        if self.pad_id is None or ctx.ids is None:
            return super().ids(ctx)
        if ctx.positions is not None:  # which count from 0, as those of packed records and of padded prompts do
            return ctx.positions + self.offset
        counts_BT = ctx.ids != self.pad_id
        # `ctx.ids` has the new tokens alone; those in the cache count as well (`cache_length` of modeling_roberta.py).
        before = ctx.offset if ctx.valid is None else ctx.valid[:, : ctx.offset].sum(-1, keepdim=True)
        ids_BT = counts_BT.long().cumsum(-1) - 1 + before
        return torch.where(counts_BT, self.of_documents(ids_BT, ctx, counts_BT), -1) + self.offset

    def embed(self, ids: Tensor) -> Tensor:
        if self.pad_id is None:
            return self.table(ids + self.offset)
        # With padding_idx that row has no gradient, as in Hugging Face's RoBERTa.
        return F.embedding(ids, self.table.weight, padding_idx=self.offset - 1)


@register("position", "sinusoidal")
class Sinusoidal(Absolute):
    """Sines and cosines of the position (Vaswani et al. 2017, arXiv:1706.03762). ids (T,) or (B, T) -> (..., E).

    In float32. Pair i has the frequency 10000^(-2i/E). The paper's layout is interleaved, Marian's has halves.
    With an odd E the last sine has no cosine.
    """

    def __init__(
        self,
        sizes: Sizes,
        /,
        *,
        layout: Literal["interleaved", "halves"] = "interleaved",  # sin, cos, sin, cos; or sines, then cosines
    ):
        super().__init__()
        self.embed_dim, self.layout = sizes.embed_dim, layout

    def embed(self, ids: Tensor) -> Tensor:
        dim = self.embed_dim
        pairs = torch.arange(0, dim, 2, device=ids.device, dtype=torch.float32)
        angles = ids[..., None].float() * torch.exp(pairs * (-math.log(10000.0) / dim))
        if self.layout == "halves":
            # An odd width has one sine more than cosines (`sentinel` of marian/modeling_marian.py).
            return torch.cat([angles.sin(), angles[..., : dim // 2].cos()], -1)
        return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)[..., :dim]
