"""Scores of how far a key is from a query, for each query."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Context, Linear, Position, Table
from llmlab_plugins.position.absolute import Sinusoidal
from llmlab_plugins.position.bias import distances


class State(NamedTuple):
    keys_LNH: Tensor  # the projected sinusoids of every distance that occurs
    which: Tensor  # (T, S) or (B, T, S): the distance of each pair among them
    differs: Tensor | None  # (1 or B, T, S) bool: query and key are of two segments
    nowhere: Tensor | None  # (..., T) bool: queries at no position


@register("position", "xlnet_relative")
class XLNetRelative(Position):
    """Relative scores (Transformer-XL: Dai et al. 2019, arXiv:1901.02860; XLNet: Yang et al. 2019, arXiv:1906.08237).

    To q.k are added u.k, (q + v).W r and, with segments, (q + w).e, and the sum is scaled: r is the sinusoid of query minus
    key [sin | cos], W, u, v and w are learnt, and so are two vectors e for a key of the same segment and of another. Each
    layer has its own. Where a head has a part that is not rotated (mla), only the rest is scored. A query at a negative
    position stands nowhere: all that it sees weighs alike.
    """

    scope = "layer"
    has_bias = True
    relative = True
    telling = ({"clamp": 5}, {"segments": True, "both_ways": True})

    def __init__(
        self,
        sizes: Sizes,
        /,
        *,
        segments: bool = False,  # a score for keys of the same segment and of another
        clamp: int | None = None,  # from here on all distances are alike
        both_ways: bool = False,  # the second half of a batch is text that runs backwards
    ):
        super().__init__()
        if clamp is not None and clamp < 1:
            raise ValueError(f"position.clamp={clamp} must be at least 1")
        self.n_heads, self.width = sizes.n_heads, sizes.rotary_dim
        self.clamp, self.both_ways = clamp, both_ways
        self.splits = both_ways
        self.counts = 2 if segments else 1
        self.dropout = nn.Dropout(sizes.dropout)
        self.sinusoids = Sinusoidal(sizes.but(embed_dim=sizes.dim), layout="halves")
        self.project = Linear(sizes.dim, self.n_heads * self.width, role="k")
        self.content_bias = nn.Parameter(torch.empty(self.n_heads, self.width))
        self.position_bias = nn.Parameter(torch.empty(self.n_heads, self.width))
        self.score_width = self.n_heads * self.width
        self.segments = Table(2, self.n_heads * self.width, role="position") if segments else None
        if segments:
            self.segment_bias = nn.Parameter(torch.empty(self.n_heads, self.width))

    def ids(self, ctx: Context) -> Tensor:
        """With segments (1 or B, 2, T): positions, and segments, which are 0 where the context has none."""
        ids = super().ids(ctx)
        if self.segments is None or ids.dim() == 3:
            return ids
        if ctx.segments is None:
            return torch.stack([ids, torch.zeros_like(ids)], -2).reshape(-1, 2, ids.shape[-1])
        return torch.stack([ids.expand_as(ctx.segments), ctx.segments], -2)

    def prepare(self, q_ids: Tensor, k_ids: Tensor) -> State:
        differs = None
        if self.segments is not None:
            differs = q_ids[:, 1, :, None] != k_ids[:, 1, None, :]
            q_ids, k_ids = q_ids[:, 0], k_ids[:, 0]
        nowhere = q_ids < 0
        back = -distances(q_ids, k_ids)
        if self.clamp is not None:
            back = back.clamp(-self.clamp, self.clamp)
        most = int(back.abs().max())
        every = torch.arange(-most, most + 1, device=k_ids.device)
        # Each distance is projected once, and picked for each pair below: fewer than S + T products instead of S x T.
        keys = self.project(self.dropout(self.sinusoids.embed(every).to(self.project.weight.dtype)))
        keys = keys.unflatten(-1, (self.n_heads, self.width))
        return State(keys, back + most, differs, nowhere if nowhere.any() else None)

    def bias(self, q_BNTH: Tensor, k_BKSH: Tensor, scale: float, state: State) -> Tensor:
        q, k = q_BNTH[..., -self.width :], k_BKSH[..., -self.width :]
        groups = self.n_heads // k.shape[1]
        content = torch.einsum("kgh,bksh->bkgs", self.content_bias.unflatten(0, (-1, groups)), k).flatten(1, 2)
        far = torch.einsum("bnth,lnh->bntl", q + self.position_bias[:, None], state.keys_LNH)
        index_BTS = self._index(state, len(q))
        score = far.gather(-1, index_BTS[:, None].expand(-1, self.n_heads, -1, -1)) + content[:, :, None]
        if self.segments is not None:
            assert state.differs is not None
            vectors = self.segments.weight.unflatten(-1, (self.n_heads, self.width))
            of_segment = torch.einsum("bnth,snh->sbnt", q + self.segment_bias[:, None], vectors)[..., None]
            # Row 1 is that of another segment: XLNet's seg_mat is the one-hot of "differs".
            score = score + torch.where(state.differs[:, None], of_segment[1], of_segment[0])
        if state.nowhere is not None:
            # The bias takes the product away again: all scores of such a query are 0, and its weights are equal.
            products = q_BNTH @ k_BKSH.repeat_interleave(groups, 1).mT
            score = torch.where(state.nowhere[..., None, :, None], -products, score)
        return score * scale

    def _index(self, state: State, batch: int) -> Tensor:
        """(B, T, S). Where text runs backwards, so do distances."""
        index_BTS = state.which.expand(batch, *state.which.shape[-2:])
        if not self.both_ways:
            return index_BTS
        if batch % 2:
            raise ValueError(
                f"position.both_ways=true needs an even batch, whose halves run two ways, but it has {batch}"
            )
        forwards, backwards = index_BTS.chunk(2)
        # Distances run from -most to most, so that the opposite one lies as far from the other end.
        return torch.cat([forwards, len(state.keys_LNH) - 1 - backwards])
