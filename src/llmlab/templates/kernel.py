"""A kernel of your own: how softmax(s) v is computed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from llmlab.registry import register
from llmlab.slots import Score, Seen, Term
from llmlab.twins import Given, twin


@register("kernel", "my_kernel")
class MyKernel:
    """Attention step by step, softmax(scale q.k + bias) v (Vaswani et al. 2017, arXiv:1706.03762), softmax in float32.

    q (B, N, T, H), k (B, K, S, H), v (B, K, S, H') -> (B, N, T, H'); K divides N. kernel=eager does the same and more.
    """

    def __init__(self, *, off_by_one: bool = False):  # 1 is added to the sum that weights are divided by
        self.off_by_one = off_by_one

    def check(self, *, softcap: bool, sink: bool, bias: bool, regions: bool, dropout: bool) -> None:
        """Refuse what it can't do when the model is built; never ignore it."""
        asked = {"model.attention.softcap": softcap, "model.attention.sink": sink, "a position with regions": regions}
        if cannot := [name for name, wanted in asked.items() if wanted]:
            raise ValueError(f"kernel=my_kernel can't do {' and '.join(cannot)}; kernel=eager can")

    def lower(self, seen: Seen) -> Tensor | None:
        """Once a forward, for all layers that see the same: (1|B, 1, T, S) bool, or None where all is seen."""
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
        q_BNTH, k_BKSH, _ = terms[0]
        groups = q_BNTH.shape[1] // k_BKSH.shape[1]  # query heads that share a key
        # Neighbouring query heads share a key, as LLaMA's checkpoints have it: repeat_interleave and not repeat.
        k_BNSH, v_BNSH = k_BKSH.repeat_interleave(groups, 1), v_BKSH.repeat_interleave(groups, 1)
        # The softmax is in float32 under bf16 too, as LLaMA in transformers has it.
        s_BNTS = (q_BNTH @ k_BNSH.transpose(-2, -1)).float() * score.scale
        if bias is not None:
            s_BNTS = s_BNTS + bias
        if lowered is not None:
            # Not -inf: the softmax of a row that sees nothing would be NaN, and so would its gradient.
            s_BNTS = s_BNTS.masked_fill(~lowered, torch.finfo(s_BNTS.dtype).min)
        if self.off_by_one:
            # A logit of 0 adds exp(0) = 1 to the sum, and its weight is dropped.
            s_BNTS = F.pad(s_BNTS, (0, 1))
        w_BNTS = s_BNTS.softmax(-1)[..., : k_BNSH.shape[2]]
        if lowered is not None:
            w_BNTS = w_BNTS.masked_fill(~lowered, 0.0)  # a query that sees nothing gives 0
        return F.dropout(w_BNTS.to(v_BNSH.dtype), score.dropout, training) @ v_BNSH


# Not of the class: `llmlab check` holds the part to what this says, at every setting of its options. What a twin is given, and
# which outputs it may give, is listed in the docstring of llmlab.check.twins.observers.kernel.
@twin("kernel", "my_kernel", source="Vaswani et al. 2017, equation 1; off by one as Miller 2023")
def definition(given: Given) -> dict[str, np.ndarray]:
    def attention(case: str) -> np.ndarray:
        q, key_heads = given.inputs["q"], int(given.inputs[f"{case}.key_heads"])
        k, v = (np.repeat(given.inputs[key][:, :key_heads], q.shape[1] // key_heads, 1) for key in "kv")
        bias = given.inputs["own_bias"][0] if case == "bias" else 0.0
        e = np.exp(given.inputs["scale"] * q @ k.swapaxes(2, 3) + bias) * given.inputs[f"{case}.seen"][:, None]
        return e @ v / (e.sum(-1, keepdims=True) + given.options["off_by_one"])

    return {case: attention(case) for case in ("causal", "full", "window", "padded", "packed", "bias")}
