"""Functions of PyTorch that only GPUs have, or only there with gradients, written out: kernels that call them are asked here.

A kernel that computes on some devices only says on which (see `llmlab.slots.Kernel`); for the time of a check it is a CPU.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from llmlab import attributes
from llmlab.check.subject import CheckFailed

MAX_HEAD_DIM, HEAD_DIM_MULTIPLE = 256, 8  # widths of a head that FlashAttention computes


def varlen_attn(
    q_nNH: Tensor,
    k_nKH: Tensor,
    v_nKH: Tensor,
    q_bounds: Tensor,
    k_bounds: Tensor,
    q_longest: int,
    k_longest: int,
    *,
    scale: float,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """(n, N, H) of texts end to end, as torch.nn.attention.varlen documents it, a text at a time. Wrong for what it would
    not take."""
    widths = {x.shape[-1] for x in (q_nNH, k_nKH, v_nKH)}
    lengths = q_bounds.diff()
    if len(widths) > 1 or max(widths) > MAX_HEAD_DIM or max(widths) % HEAD_DIM_MULTIPLE:
        raise CheckFailed(f"varlen_attn is given heads {widths} wide")
    if q_bounds.dtype != torch.int32 or not torch.equal(q_bounds, k_bounds) or int(lengths.min()) < 1:
        raise CheckFailed("varlen_attn is given bounds that are not ascending int32, the same of queries and keys")
    if (int(q_bounds[0]), int(q_bounds[-1])) != (0, len(q_nNH)) or not q_longest == k_longest >= int(lengths.max()):
        raise CheckFailed(
            f"varlen_attn is given bounds {q_bounds.tolist()} of {len(q_nNH)} tokens, the longest {q_longest}"
        )
    if window_size not in ((-1, 0), (-1, -1)) or (not enable_gqa and q_nNH.shape[1] != k_nKH.shape[1]):
        raise CheckFailed(f"varlen_attn is given window_size={window_size}, or shared heads without enable_gqa")
    groups = q_nNH.shape[1] // k_nKH.shape[1]
    q, k, v = (x.repeat_interleave(n, 1).transpose(0, 1) for x, n in ((q_nNH, 1), (k_nKH, groups), (v_nKH, groups)))
    out = []
    for a, b in itertools.pairwise(q_bounds.tolist()):
        s_NTS = scale * q[:, a:b] @ k[:, a:b].mT
        if window_size == (-1, 0):
            s_NTS = s_NTS.masked_fill(torch.ones(b - a, b - a).triu(1).bool(), float("-inf"))
        out.append(s_NTS.softmax(-1) @ v[:, a:b])
    return torch.cat(out, 1).transpose(0, 1)


def flex_attention(
    q_BNTH: Tensor,
    k_BKSH: Tensor,
    v_BKSH: Tensor,
    score_mod: Callable[..., Tensor] | None = None,
    block_mask: Any = None,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """(B, N, T, H'), as torch.nn.attention.flex_attention documents it; a query that sees nothing gives 0."""
    if not enable_gqa and q_BNTH.shape[1] != k_BKSH.shape[1]:
        raise CheckFailed("flex_attention is given shared heads without enable_gqa")
    k, v = (x.repeat_interleave(q_BNTH.shape[1] // x.shape[1], 1) for x in (k_BKSH, v_BKSH))
    s_BNTS = q_BNTH @ k.mT * (q_BNTH.shape[-1] ** -0.5 if scale is None else scale)
    where = [torch.arange(n).view(-1, *(1,) * (3 - at)) for at, n in enumerate(s_BNTS.shape)]
    if score_mod is not None:
        s_BNTS = score_mod(s_BNTS, *where)
    if block_mask is None:
        return s_BNTS.softmax(-1) @ v
    hidden = ~block_mask.mask_mod(*where).expand_as(s_BNTS)
    weights = s_BNTS.masked_fill(hidden, torch.finfo(s_BNTS.dtype).min).softmax(-1)
    return weights.masked_fill(hidden, 0.0) @ v


IMPLEMENTATIONS: dict[tuple[str, str], Callable[..., Tensor]] = {
    ("torch.nn.attention.varlen", "varlen_attn"): varlen_attn,
    ("torch.nn.attention.flex_attention", "flex_attention"): flex_attention,
}


def gpu_calls(kernel: Any) -> list[tuple[dict[str, Any], str]]:
    """Where the modules of the kernel's classes name such functions; nothing if it could not be used here even so."""
    if not attributes.of(kernel, "kernel", "devices"):
        return []
    modules = [vars(sys.modules[name]) for name in dict.fromkeys(c.__module__ for c in type(kernel).__mro__)]
    return [(names, name) for names in modules for name, value in names.items() if _path(value) in IMPLEMENTATIONS]


def _path(value: Any) -> tuple[str, str]:
    return str(getattr(value, "__module__", "")), str(getattr(value, "__name__", ""))


@contextmanager
def replaced_by_reference(kernel: Any) -> Iterator[None]:
    """Within, the kernel computes here as on the devices that it is for. Wrong if it has called nothing of theirs by then."""
    calls = []

    def counted(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*given: Any, **options: Any) -> Tensor:
            calls.append(function)
            return function(*given, **options)

        return call

    own = [(names, name, names[name]) for names, name in gpu_calls(kernel)]
    here = {"devices": ("cpu",), "dtypes": (torch.float32,)}
    said = [name for name in here if attributes.of(kernel, "kernel", name)]
    for names, name, theirs in own:
        names[name] = counted(IMPLEMENTATIONS[_path(theirs)])
    for name in said:
        setattr(kernel, name, here[name])
    try:
        yield
    finally:
        for names, name, theirs in own:
            names[name] = theirs
        for name in said:
            delattr(kernel, name)
    if not calls:
        raise CheckFailed(f"it never calls {' or '.join(name for _, name, _ in own)}, whatever is seen")
