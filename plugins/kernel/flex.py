"""PyTorch's attention that is compiled for its mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from llmlab.errors import UserError
from llmlab.registry import register
from llmlab.slots import Score, Seen, Term

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (sample, head, query, key) -> bool
CAUSAL = "causal"


@register("kernel", "flex")
class Flex:
    """PyTorch's flex_attention, compiled for its mask, for GPUs (Dong et al. 2024, arXiv:2412.05496).

    What is seen becomes a block mask once a forward, and blocks in which nothing is seen are skipped. Bias and soft cap
    are added inside the kernel. On a CPU it computes without gradients only, unfused. No sinks, regions or dropout.
    """

    devices = ("cuda",)  # with gradients

    def check(self, *, softcap: bool, sink: bool, bias: bool, regions: bool, dropout: bool) -> None:
        asked = {
            "model.attention.sink": sink,
            "a position with regions": regions,
            "model.attention.dropout": dropout,
        }
        if cannot := [name for name, wanted in asked.items() if wanted]:
            raise ValueError(f"kernel=flex can't do {' and '.join(cannot)}; choose kernel=eager")

    def check_training(self, device: str, precision: str) -> None:
        # "FlexAttention does not support backward on CPU", as a NotImplementedError at the first forward (torch 2.13).
        if device == "cpu":
            raise ValueError("kernel=flex can't train on a CPU; choose kernel=sdpa")

    def lower(self, seen: Seen) -> BlockMask | str | None:
        if seen.pattern == "full":
            return None
        if seen.pattern == CAUSAL:
            return CAUSAL
        if seen.within is not None and seen.documents is not None:
            rows, length = seen.documents.shape
            rule = same_document(seen.documents, seen.within == CAUSAL)
            # None for heads makes one mask for all. Uncompiled, PyTorch writes
            # the mask out, (B, T, T), before it reduces it to blocks of 128.
            return create_block_mask(rule, rows, None, length, length, device=seen.documents.device)
        dense = seen.dense()
        samples, _, queries, keys = dense.shape
        return create_block_mask(looked_up(dense), samples, None, queries, keys, device=dense.device)

    def __call__(
        self,
        terms: Sequence[Term],
        v_BKSH: Tensor,
        lowered: BlockMask | str | None,
        bias: Tensor | None,
        score: Score,
        sink: Tensor | None,
        training: bool,
    ) -> Tensor:
        assert len(terms) == 1 and terms[0].region is None and sink is None and not (training and score.dropout)
        # flex_attention takes mixed types (torch 2.13) and answers in that of the queries, which a norm may have made wider.
        q_BNTH, k_BKSH = (x.to(v_BKSH.dtype) for x in terms[0][:2])
        on_cpu = q_BNTH.device.type == "cpu"
        graded = torch.is_grad_enabled() and any(x.requires_grad for x in (q_BNTH, k_BKSH, v_BKSH))
        if on_cpu and graded and "cpu" not in self.devices:
            raise UserError("kernel=flex can't train on a CPU; choose kernel=sdpa")
        if isinstance(lowered, str):
            lowered = causal_blocks(q_BNTH.shape[2], q_BNTH.device)
        attention: Any = flex_attention if on_cpu or torch.compiler.is_compiling() else fused()
        return attention(
            q_BNTH,
            k_BKSH,
            v_BKSH,
            score_mod=scored(bias, score.softcap) if bias is not None or score.softcap is not None else None,
            block_mask=lowered,
            scale=score.scale,
            enable_gqa=k_BKSH.shape[1] != q_BNTH.shape[1],
        )

    def kept(self, seen: Seen, terms: Sequence[Term], v_BKSH: Tensor, bias: Tensor | None, score: Score) -> int:
        """A sum a query."""
        return 4 * terms[0].q_BNTH.shape[:-1].numel()


@cache
def fused() -> Any:
    # Uncompiled it materialises all scores (PyTorch warns of it), so that its memory grows with T x S.
    return torch.compile(flex_attention)


@lru_cache(maxsize=8)
def causal_blocks(length: int, device: torch.device) -> BlockMask:
    # Validation runs in inference mode, and what is made there can't be kept for the backward of a later training step.
    with torch.inference_mode(False):
        return create_block_mask(lambda b, h, q, k: k <= q, None, None, length, length, device=device)


def looked_up(dense: Tensor) -> Rule:
    """(1|B, 1, T, S) bool."""
    # One mask for all samples: flex_attention still hands in each sample's own index.
    if dense.shape[0] == 1:
        return lambda b, h, q, k: dense[0, 0, q, k]
    return lambda b, h, q, k: dense[b, 0, q, k]


def same_document(documents: Tensor, causal: bool) -> Rule:
    """(B, T) int."""
    if causal:
        return lambda b, h, q, k: (k <= q) & (documents[b, q] == documents[b, k])
    return lambda b, h, q, k: documents[b, q] == documents[b, k]


def scored(bias: Tensor | None, cap: float | None) -> Callable[..., Tensor]:
    """The score_mod of flex_attention: softcap(s + bias) of a scaled product s."""

    def change(s: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        if bias is not None:
            s = s + (bias[b, h, q, k] if bias.dim() == 4 else bias[h, q, k])
        return s if cap is None else torch.tanh(s / cap) * cap

    return change
