"""Layer normalisation."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmlab.registry import register


@register("norm", "layernorm")
class LayerNorm(nn.Module):
    """Layer norm (Ba et al. 2016, arXiv:1607.06450): w (x - mean) / sqrt(variance + eps) + b, statistics in float32.

    Shapes: x (..., dim) -> (..., dim), same dtype. Weight (dim,) begins at 1, bias (dim,) at 0.
    """

    def __init__(
        self,
        dim: int,
        eps: float,
        /,
        *,
        weight: bool = True,  # multiplied by a vector
        bias: bool = True,  # with a vector added
    ):
        super().__init__()
        self.dim, self.eps = dim, eps
        # OLMo 1 has neither of the two, MPT and ModernBERT no bias.
        self.weight = nn.Parameter(torch.empty(dim)) if weight else None
        self.bias = nn.Parameter(torch.empty(dim)) if bias else None
        self.constants = {"weight": 1.0} if weight else {}

    def forward(self, x: Tensor) -> Tensor:
        # Under autocast on CUDA layer_norm is computed, and returned, in float32.
        return F.layer_norm(x, (self.dim,), self.weight, self.bias, self.eps).to(x.dtype)
