"""A norm of your own."""

import torch
from torch import Tensor, nn

from llmlab.registry import register


@register("norm", "my_norm")
class MyNorm(nn.Module):
    """Power-mean norm: w x / (mean |x|^power + eps)^(1/power); with 2 RMSNorm (Zhang & Sennrich 2019, arXiv:1910.07467).

    x (..., dim) -> (..., dim), same dtype, computed in float32. Weight (dim,) begins at 1.
    """

    def __init__(self, dim: int, eps: float, /, *, power: float = 2.0):  # of the mean
        super().__init__()
        if power <= 0:
            raise ValueError(f"norm.power={power} must be more than 0")
        self.eps, self.power = eps, power
        # Empty: parts are built on the meta device, and filled as `constants` says or by the init part.
        self.weight = nn.Parameter(torch.empty(dim))
        self.constants = {"weight": 1.0}

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        size = (y.abs().pow(self.power).mean(-1, keepdim=True) + self.eps) ** (1 / self.power)
        # Rounded once, behind the weight; LLaMA in transformers rounds before it.
        return (self.weight.float() * y / size).to(x.dtype)
