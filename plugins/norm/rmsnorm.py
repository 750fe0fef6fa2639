"""Root-mean-square normalisation."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmlab.registry import register


@register("norm", "rmsnorm")
class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang & Sennrich 2019, arXiv:1910.07467): (offset + w) x / sqrt(mean(x^2) + eps).

    Shapes: x (..., dim) -> (..., dim), same dtype, computed in float32. Weight (dim,) begins at 1 - offset. With
    offset 0 the normed value returns to x's dtype before it meets the weight (LLaMA, T5), else after (Gemma, offset 1).
    """

    telling = ({"offset": 1.0},)

    def __init__(self, dim: int, eps: float, /, *, offset: float = 0.0):  # added to the weight
        super().__init__()
        self.dim, self.eps, self.offset = dim, eps, offset
        self.weight = nn.Parameter(torch.empty(dim))
        self.constants = {"weight": 1.0 - offset}

    def forward(self, x: Tensor) -> Tensor:
        if self.offset:
            return F.rms_norm(x.float(), (self.dim,), self.offset + self.weight.float(), self.eps).to(x.dtype)
        # One fused call where no rounding lies between the normed value and the weight.
        if x.dtype == torch.float32:
            return F.rms_norm(x, (self.dim,), self.weight, self.eps).to(x.dtype)
        # LLaMA's order of roundings. torch 2.13 has no fused kernel, and warns, for a bfloat16 x beside a float32 weight.
        return (self.weight * F.rms_norm(x.float(), (self.dim,), None, self.eps).to(x.dtype)).to(x.dtype)
