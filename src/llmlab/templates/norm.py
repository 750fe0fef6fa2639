"""A norm of your own."""

import numpy as np
import torch
from torch import Tensor, nn

from llmlab.registry import register
from llmlab.twins import Given, twin


@register("norm", "my_norm")
class MyNorm(nn.Module):
    """Power-mean norm: w x / (mean |x|^power + eps)^(1/power); with 2 RMSNorm (Zhang & Sennrich 2019, arXiv:1910.07467).

    x (..., dim) -> (..., dim), same dtype, computed in float32. Weight (dim,) begins at 1.
    """

    telling = ({"power": 3.0},)

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


# Not of the class: `llmlab check` holds the part to what this says, at every setting of its options. What a twin is given, and
# which outputs it may give, is listed in the docstring of llmlab.check.twins.observers.norm.
@twin("norm", "my_norm", source="Zhang and Sennrich 2019, equation 4, with another power than 2")
def definition(given: Given) -> dict[str, np.ndarray]:
    power, weight = given.options["power"], given.weights["weight"]

    def normed(x: np.ndarray) -> np.ndarray:
        return weight * x / ((np.abs(x) ** power).mean(-1, keepdims=True) + given.sizes.norm_eps) ** (1 / power)

    return {name: normed(x) for name, x in given.inputs.items()}
