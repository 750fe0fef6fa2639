"""Rows of all ranks, through which gradients go back to the rank that each came from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Gathered(torch.autograd.Function):
    """(B, ...) of each rank -> (ranks x B, ...), the same on all of them.

    By sums, which every strategy has: torch.distributed's all_gather has no gradient, and gloo no reduce_scatter.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, rank: int, world: int, total: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.rank, ctx.world, ctx.total = rank, world, total
        every = rows.new_zeros(world, *rows.shape)
        every[rank] = rows
        gathered = total(every)
        return gathered.flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        # Each rank's loss has gradients by the rows of all; cloned, as the sum may be made in place.
        (slope,) = slopes
        summed = ctx.total(slope.unflatten(0, (ctx.world, -1)).contiguous().clone())
        return summed[ctx.rank], None, None, None
