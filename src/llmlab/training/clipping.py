"""The norm of all gradients, and scaling them to at most a given norm, also where they are sharded."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def clip_by_norm(parameters: list[nn.Parameter], limit: float | None) -> Tensor:
    """Scale gradients in place by min(1, limit / norm) and return the norm before, () float32, without a transfer.

    The norm is over all ranks that share a parameter (DTensor); `limit` None only measures.
    """
    from torch.distributed.tensor import DTensor

    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    local = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
    if any(isinstance(g, DTensor) for g in gradients):
        norms = [torch.linalg.vector_norm(g) for g in gradients]
        norms = [n.full_tensor() if isinstance(n, DTensor) else n for n in norms]
    else:
        norms = list(torch._foreach_norm(local))
    total = torch.linalg.vector_norm(torch.stack([n.float() for n in norms]))
    if limit is not None:
        torch._foreach_mul_(local, (limit / (total + 1e-6)).clamp(max=1.0))
    return total
