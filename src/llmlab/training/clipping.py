"""The norm of all gradients, and scaling them to at most a given norm, also where they are sharded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def clip_by_norm(parameters: list[nn.Parameter], limit: float | None) -> Tensor:
    """Scale gradients in place by min(1, limit / norm) (Pascanu et al. 2013, arXiv:1211.5063) and return
    the norm before, () float32, without a transfer.

    Sharded gradients (DTensors, all on one mesh) are measured whole; `limit` None only measures.
    """
    from torch.distributed.tensor import DTensor

    gradients = [p.grad for p in parameters if p.grad is not None]
    # `_foreach_norm` refuses an empty list.
    if not gradients:
        return torch.zeros(())
    local = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
    # One kernel for all tensors, as in torch.nn.utils.clip_grad_norm_; in float32, since sums of bfloat16 lose the small ones.
    norms = torch.stack([n.float() for n in torch._foreach_norm(local)])
    sharded = [g for g in gradients if isinstance(g, DTensor)]
    total = _over_ranks(norms, sharded) if sharded else torch.linalg.vector_norm(norms)
    if limit is not None:
        # Clamped and always multiplied, as torch does too: `if norm > limit` would wait for the device. 1e-6 is torch's own.
        torch._foreach_mul_(local, (limit / (total + 1e-6)).clamp(max=1.0))
    return total


def _over_ranks(norms: Tensor, gradients: Sequence[Any]) -> Tensor:
    """The norm of all, from those of the pieces (n,) that this rank has of the n gradients: one sum over the mesh."""
    mesh = gradients[0].device_mesh
    assert len(norms) == len(gradients) and all(g.device_mesh == mesh for g in gradients)
    # A replicated dimension has the same piece on each of its ranks, and the sum over the mesh would count it as often.
    copies = [math.prod(mesh.size(d) for d, p in enumerate(g.placements) if p.is_replicate()) for g in gradients]
    square = (norms.double().square() / torch.tensor(copies, device=norms.device)).sum()
    for dim in range(mesh.ndim):  # a process group has one dimension; a sum over a mesh is one over each in turn
        torch.distributed.all_reduce(square, group=mesh.get_group(dim))
    return square.sqrt().float()
