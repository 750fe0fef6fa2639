"""Reference versions of PyTorch functions that need a GPU, so that kernels which call them can be checked on a CPU.

A kernel for some devices only declares them (see `llmlab.slots.Kernel`); during a check that list is replaced by "cpu".
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llmlab import attributes
from llmlab.check.subject import CheckFailed
from llmlab.slots import Kernel

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

# Limits of FlashAttention 2, which varlen_attn calls.
MAX_HEAD_DIM, HEAD_DIM_MULTIPLE = 256, 8


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
    """(n, N, H) of texts end to end, as torch.nn.attention.varlen documents it, one text at a time. CheckFailed for arguments
    that it does not accept."""
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
        # No row of -inf alone: a causal query sees itself at least, so no NaN.
        out.append(s_NTS.softmax(-1) @ v[:, a:b])
    return torch.cat(out, 1).transpose(0, 1)


def flex_attention(
    q_BNTH: Tensor,
    k_BKSH: Tensor,
    v_BKSH: Tensor,
    score_mod: Callable[..., Tensor] | None = None,
    block_mask: BlockMask | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """(B, N, T, H'), as torch.nn.attention.flex_attention documents it. A query that sees nothing gives 0, as there."""
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


def gpu_calls(kernel: Kernel) -> list[tuple[dict[str, Any], str]]:
    """(module globals, name) of each such function that the modules of the kernel's classes import; none if it does not
    declare `devices`, so that its device check can't be replaced."""
    if not attributes.get(kernel, "kernel", "devices"):
        return []
    # `from ... import` copies a name into the importing module, so it is replaced
    # there; in those of base classes too, whose methods look it up in their own.
    modules = [vars(sys.modules[name]) for name in dict.fromkeys(c.__module__ for c in type(kernel).__mro__)]
    return [(names, name) for names in modules for name, value in names.items() if _path(value) in IMPLEMENTATIONS]


def _path(value: object) -> tuple[str, str]:
    # By name, so that torch.nn.attention.varlen is imported only where a kernel has done so.
    return str(getattr(value, "__module__", "")), str(getattr(value, "__name__", ""))


@contextmanager
def replaced_by_reference(kernel: Kernel) -> Iterator[None]:
    """Context in which the kernel runs on a CPU with the reference functions. CheckFailed if it has called none of them."""
    calls: list[Callable[..., Tensor]] = []

    def counted(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: object, **options: object) -> Tensor:
            calls.append(function)
            return function(*args, **options)

        return call

    originals = [(names, name, names[name]) for names, name in gpu_calls(kernel)]
    here = {"devices": ("cpu",), "dtypes": (torch.float32,)}
    declared = [name for name in here if attributes.get(kernel, "kernel", name)]
    for names, name, original in originals:
        names[name] = counted(IMPLEMENTATIONS[_path(original)])
    for name in declared:
        # On the instance, where it hides the class's own value until it is deleted.
        setattr(kernel, name, here[name])
    try:
        yield
    finally:
        for names, name, original in originals:
            names[name] = original
        for name in declared:
            delattr(kernel, name)
    if not calls:
        raise CheckFailed(f"it never calls {' or '.join(name for _, name, _ in originals)}, whatever is seen")
