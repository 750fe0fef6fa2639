"""PyTorch's fused attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llmlab.registry import register
from llmlab.slots import Score, Seen, Term


class Lowered:
    """The keys that each query sees, made a mask tensor only if one is needed."""

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

    No mask tensor where what is seen is plainly causal, or all. Off the CPU, k and v are repeated for grouped heads where
    FlashAttention can't run. No softcap, sinks or regions: kernel=eager has them.
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
            # PyTorch documents a float mask of the queries' type; beside a
            # float32 query one of bfloat16 is an error (torch 2.13).
            mask = bias.to(q_BNTH.dtype)
            if lowered.pattern != "full":
                # `attn_mask` is one tensor, so a bias takes the bool mask in.
                # A row of -inf gives 0, not NaN (torch 2.13, on a CPU).
                mask = mask.masked_fill(~lowered.dense, float("-inf"))
            mask = mask if mask.dim() == 4 else mask[None]
        elif lowered.pattern is None:
            mask = lowered.dense
        options: dict[str, Any] = {}
        if (shared := q_BNTH.shape[1] // k_BKSH.shape[1]) > 1:
            # On CUDA grouped heads work in FlashAttention and in the sum written out only, by PyTorch's documentation.
            if q_BNTH.is_cpu or _flash(v_BKSH, mask is not None):
                options["enable_gqa"] = True
            else:
                k_BKSH, v_BKSH = (x.repeat_interleave(shared, dim=1) for x in (k_BKSH, v_BKSH))
        return F.scaled_dot_product_attention(
            q_BNTH,
            k_BKSH,
            v_BKSH,
            attn_mask=mask,
            # PyTorch's function drops out whenever this is over 0: it is no module and has no training mode.
            dropout_p=score.dropout if training else 0.0,
            # PyTorch aligns it to the upper left, so that it fits where T = S only; `pattern` is "causal" there alone.
            is_causal=mask is None and lowered.pattern == "causal",
            scale=score.scale,
            **options,
        )

    def kept(self, seen: Seen, terms: Sequence[Term], v_BKSH: Tensor, bias: Tensor | None, score: Score) -> int:
        """On CUDA, as PyTorch's documentation has it: FlashAttention and the memory-efficient kernel keep a sum a query, the
        second its mask too, in the queries' type, and k and v repeated for each head instead of those it was given. That
        one of the two takes the heads as wide as they are is assumed; else the weights are kept, which is far more."""
        q_BNTH, k_BKSH, _ = terms[0]
        queries, shared = q_BNTH.shape[:-1].numel(), q_BNTH.shape[1] // k_BKSH.shape[1]
        numbers = 0
        if masked := bias is not None or seen.pattern is None:
            masks = (q_BNTH.shape[1] if bias is not None else 1) * (1 if seen.one_for_all else q_BNTH.shape[0])
            numbers = masks * q_BNTH.shape[2] * k_BKSH.shape[2]
        if not _flash(v_BKSH, masked):
            numbers += (shared - 1) * (k_BKSH.numel() + v_BKSH.numel())
        return numbers * v_BKSH.element_size() + 4 * queries


def _flash(v_BKSH: Tensor, masked: bool) -> bool:
    """True if FlashAttention can run on a GPU: half types, no mask. Beside it only the sum written out, which keeps
    all weights, has grouped heads (`F.scaled_dot_product_attention`'s documentation); v is what autocast casts q and k to."""
    return not masked and v_BKSH.dtype in (torch.float16, torch.bfloat16)
