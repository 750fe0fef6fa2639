"""Attention written out: the reference that other kernels are tested against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from llmlab.registry import register
from llmlab.slots import Score, Seen, Term


@register("kernel", "eager")
class Eager:
    """Attention step by step, softmax(s) v (Vaswani et al. 2017, arXiv:1706.03762), softmax in float32.

    s = softcap(scale q.k + bias); a key that is not seen has weight 0, and a query that sees none gives 0.
    """

    def check(self, *, softcap: bool, sink: bool, bias: bool, regions: bool, dropout: bool) -> None:
        return None

    def lower(self, seen: Seen) -> Tensor | None:
        return None if seen.pattern == "full" else seen.dense()

    def __call__(
        self,
        terms: Sequence[Term],
        v_BKSH: Tensor,
        lowered: Tensor | None,
        bias: Tensor | None,
        score: Score,
        sink: Tensor | None,
        training: bool,
    ) -> Tensor:
        s_BNTS = products(terms) * score.scale
        if bias is not None:
            s_BNTS = s_BNTS + bias
        if score.softcap is not None:
            s_BNTS = torch.tanh(s_BNTS / score.softcap) * score.softcap
        if lowered is not None:
            # Not -inf, of which the softmax of a row without any visible key would be NaN.
            s_BNTS = s_BNTS.masked_fill(~lowered, torch.finfo(s_BNTS.dtype).min)
        # Behind the mask, as in transformers, whose eager attention asks softmax for float32 and casts the weights back.
        s_BNTS = s_BNTS.float()
        if sink is not None:
            # A sink is a logit in the denominator that no value belongs to.
            s_BNTS = torch.cat([s_BNTS, sink.float()[:, None, None].expand(*s_BNTS.shape[:-1], 1)], -1)
        w_BNTS = s_BNTS.softmax(-1)
        if sink is not None:
            w_BNTS = w_BNTS[..., :-1]
        if lowered is not None:
            # The softmax of a row of equal numbers is uniform, so a query
            # that sees nothing would read the mean of all values.
            w_BNTS = w_BNTS.masked_fill(~lowered, 0.0)
        w_BNTS = F.dropout(w_BNTS.to(v_BKSH.dtype), score.dropout, training)
        return w_BNTS @ spread(v_BKSH, w_BNTS.shape[1])


def products(terms: Sequence[Term]) -> Tensor:
    """q.k of each term where it counts: (B, N, T, S)."""
    total = None
    for q_BNTH, k_BKSH, region in terms:
        s_BNTS = q_BNTH @ spread(k_BKSH, q_BNTH.shape[1]).transpose(-2, -1)
        if region is not None and region.dim() == 3:
            region = region[:, None]
        total = s_BNTS if total is None or region is None else torch.where(region, s_BNTS, total)
    assert total is not None
    return total


def spread(x_BKSH: Tensor, n_heads: int) -> Tensor:
    """Each key-value head for all query heads of its group: (B, N, S, H)."""
    groups = n_heads // x_BKSH.shape[1]
    # Query heads of a group are neighbours, as in LLaMA's checkpoints: head n reads key head n // groups.
    return x_BKSH if groups == 1 else x_BKSH.repeat_interleave(groups, 1)
