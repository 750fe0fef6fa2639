"""PyTorch's fused attention over texts of unequal length, laid end to end."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn

from llmlab.errors import UserError
from llmlab.registry import register
from llmlab.slots import Score, Seen, Term
from llmlab_plugins.kernel.sdpa import SDPA, Lowered

SHARES = "enable_gqa" in inspect.signature(varlen_attn).parameters  # newer than the function itself
WIDEST, STEP = 256, 8  # widths of a head that it computes: up to the one, in steps of the other


class Packed(NamedTuple):
    """The documents of a batch (B, T) whose rows are laid end to end."""

    bounds: Tensor  # (documents + 1,) int32: where each begins, and where the last ends
    longest: int  # at least the length of the longest
    causal: bool


@register("kernel", "varlen")
class VarLen:
    """PyTorch's varlen_attn: FlashAttention over packed documents, for GPUs (Dao 2023, arXiv:2307.08691).

    With data.separate_documents=true only products within a document are made, and no mask, so cost falls with the
    documents' lengths. bfloat16 or float16; heads of up to 256. What else is hidden (a window, padding, a prefix) or was
    said before (a cache), and batches of one document a row, go as kernel=sdpa computes them; on a CPU all does, without
    gradients. No bias, soft cap, sinks, regions or dropout.
    """

    devices = ("cuda",)
    dtypes = (torch.bfloat16, torch.float16)

    def __init__(self) -> None:
        self.others = SDPA()

    def check(self, *, softcap: bool, sink: bool, bias: bool, regions: bool, dropout: bool) -> None:
        asked = {
            "model.attention.softcap": softcap,
            "model.attention.sink": sink,
            "a position with a bias": bias,
            "a position with regions": regions,
            "model.attention.dropout": dropout,
        }
        if cannot := [name for name, wanted in asked.items() if wanted]:
            raise ValueError(f"kernel=varlen can't do {' and '.join(cannot)}; choose kernel=eager")

    def check_training(self, device: str, precision: str) -> None:
        if device == "cpu":
            raise ValueError("kernel=varlen can't train on a CPU; choose kernel=sdpa")
        if precision.startswith("32"):
            raise ValueError(
                f"kernel=varlen can't train with precision={precision}; choose precision=bf16-mixed, or kernel=sdpa"
            )

    def lower(self, seen: Seen) -> Packed | Lowered:
        packed = None
        if seen.within is not None and seen.documents is not None and seen.documents.device.type in self.devices:
            packed = pack(seen.documents, seen.within == "causal")
        return self.others.lower(seen) if packed is None else packed

    def __call__(
        self,
        terms: Sequence[Term],
        v_BKSH: Tensor,
        lowered: Packed | Lowered,
        bias: Tensor | None,
        score: Score,
        sink: Tensor | None,
        training: bool,
    ) -> Tensor:
        q_BNTH, k_BKSH, region = terms[0]
        assert len(terms) == 1 and region is None and bias is None and sink is None and score.softcap is None
        assert not (training and score.dropout)
        if isinstance(lowered, Packed):
            if v_BKSH.dtype not in self.dtypes:
                raise UserError(
                    "kernel=varlen computes in bfloat16 or float16, but is given "
                    f"{str(v_BKSH.dtype).removeprefix('torch.')}; choose precision=bf16-mixed, or kernel=sdpa"
                )
            return packed_attention(q_BNTH, k_BKSH, v_BKSH, lowered, score.scale)
        on_cpu = v_BKSH.device.type == "cpu" and "cpu" not in self.devices
        if on_cpu and torch.is_grad_enabled() and v_BKSH.requires_grad:
            raise UserError("kernel=varlen can't train on a CPU; choose kernel=sdpa")
        return self.others(terms, v_BKSH, lowered, bias, score, sink, training)

    def kept(self, seen: Seen, terms: Sequence[Term], v_BKSH: Tensor, bias: Tensor | None, score: Score) -> int:
        """A sum a query where documents are packed."""
        if seen.within is not None and seen.documents is not None:
            return 4 * terms[0].q_BNTH.shape[:-1].numel()
        return self.others.kept(seen, terms, v_BKSH, bias, score)


def pack(documents: Tensor, causal: bool) -> Packed | None:
    """(B, T) int -> where its documents lie; None if one of them is interrupted by another in its row."""
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    bounds = F.pad(begins.flatten().nonzero().squeeze(1), (0, 1), value=documents.numel())
    # Sorted, a document that another interrupts is one run of ids; as it stands it is two.
    in_order = documents.sort(-1).values
    pieces = documents.shape[0] + (in_order[:, 1:] != in_order[:, :-1]).sum()
    # One transfer from the GPU for both numbers: each waits for the device.
    longest, pieces = torch.stack([bounds.diff().max(), pieces]).tolist()
    if pieces != len(bounds) - 1:
        return None
    # Powers of two, as a compiled layer is compiled anew for each other value.
    longest = min(1 << (longest - 1).bit_length(), documents.shape[1])
    # FlashAttention's cumulative lengths are int32; `nonzero` gives int64.
    return Packed(bounds.int(), longest, causal)


def packed_attention(q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, packed: Packed, scale: float) -> Tensor:
    """(B, N, T, H'). The rows of a batch are laid end to end, and heads widened by zeros to what the kernel computes."""
    n_heads, n_kv_heads, v_width = q_BNTH.shape[1], k_BKTH.shape[1], v_BKTH.shape[-1]
    width = -(-max(q_BNTH.shape[-1], v_width) // STEP) * STEP
    if width > WIDEST:
        raise UserError(
            f"kernel=varlen computes heads of up to {WIDEST}, but they are {width} wide; choose kernel=sdpa"
        )
    flat = [x.to(v_BKTH.dtype).transpose(1, 2).flatten(0, 1) for x in (q_BNTH, k_BKTH, v_BKTH)]
    # Zeros add nothing to q.k, and the columns of v are cut off below; the scale is given, so it does not follow the width.
    q, k, v = (F.pad(x, (0, width - x.shape[-1])) for x in flat)
    options: dict[str, Any] = {}
    if n_heads != n_kv_heads and SHARES:
        options = {"enable_gqa": True}
    elif n_heads != n_kv_heads:
        k, v = (x.repeat_interleave(n_heads // n_kv_heads, 1) for x in (k, v))
    bounds, longest, causal = packed
    # varlen_attn has no argument for causal: it takes a window of exactly (-1, 0) for it.
    window = (-1, 0 if causal else -1)  # any key before; none after, or any
    o: Any = varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scale, window_size=window, **options)
    return o[..., :v_width].unflatten(0, (len(q_BNTH), -1)).transpose(1, 2)
