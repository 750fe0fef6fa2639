"""PyTorch's fused attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from llmlab.registry import register
from llmlab.slots import Score, Seen, Term


class Lowered:
    """What is seen, as a mask only if one is needed."""

    def __init__(self, seen: Seen):
        self.seen, self.pattern = seen, seen.pattern
        # Where one is needed anyway it is made here, once a forward and outside of any recomputed block.
        self.made = None if self.pattern else seen.dense()

    @property
    def dense(self) -> Tensor:
        return self.seen.dense() if self.made is None else self.made


@register("kernel", "sdpa")
class SDPA:
    """PyTorch's scaled_dot_product_attention, fused where the device can (FlashAttention: Dao 2023, arXiv:2307.08691).

    No mask tensor where what is seen is plainly causal, or all. No softcap, sinks or regions: kernel=eager has them.
    """

    def check(self, *, softcap: bool, sink: bool, bias: bool, regions: bool, dropout: bool) -> None:
        asked = {"model.attention.softcap": softcap, "model.attention.sink": sink, "a position with regions": regions}
        cannot = [name for name, wanted in asked.items() if wanted]
        if cannot:
            raise ValueError(f"kernel=sdpa can't do {' and '.join(cannot)}; choose kernel=eager")

    def lower(self, seen: Seen) -> Lowered:
        return Lowered(seen)

    def __call__(
        self,
        terms: Sequence[Term],
        v_BKSH: Tensor,
        lowered: Lowered,
        bias: Tensor | None,
        score: Score,
        sink: Tensor | None,
        training: bool,
    ) -> Tensor:
        assert len(terms) == 1 and terms[0].region is None and sink is None and score.softcap is None
        q_BNTH, k_BKSH, _ = terms[0]
        mask: Tensor | None = None
        if bias is not None:
            mask = bias.to(q_BNTH.dtype)
            if lowered.pattern != "full":
                mask = mask.masked_fill(~lowered.dense, float("-inf"))
            mask = mask if mask.dim() == 4 else mask[None]
        elif lowered.pattern is None:
            mask = lowered.dense
        options: dict[str, Any] = {"enable_gqa": True} if k_BKSH.shape[1] != q_BNTH.shape[1] else {}
        return F.scaled_dot_product_attention(
            q_BNTH,
            k_BKSH,
            v_BKSH,
            attn_mask=mask,
            dropout_p=score.dropout if training else 0.0,
            is_causal=mask is None and lowered.pattern == "causal",
            scale=score.scale,
            **options,
        )

    def kept(self, seen: Seen, terms: Sequence[Term], v_BKSH: Tensor, bias: Tensor | None, score: Score) -> int:
        """FlashAttention and the memory-efficient kernel keep a sum a query, the second its mask too, in the queries'
        type. It takes no grouped heads: with a mask these are computed step by step, which keeps the weights."""
        q_BNTH, k_BKSH, _ = terms[0]
        queries, keys = q_BNTH.shape[:-1].numel(), k_BKSH.shape[2]
        if bias is None and seen.pattern is not None:
            return 4 * queries
        masks = (q_BNTH.shape[1] if bias is not None else 1) * (1 if seen.one_for_all else q_BNTH.shape[0])
        mask = masks * q_BNTH.shape[2] * keys * v_BKSH.element_size()
        return mask + 4 * queries * (1 if k_BKSH.shape[1] == q_BNTH.shape[1] else keys)
