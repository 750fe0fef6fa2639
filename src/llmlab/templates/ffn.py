"""A feed-forward of your own."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from llmlab.registry import register
from llmlab.twins import Given, twin


@register("ffn", "my_ffn")
class MyFfn(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202): down(g sigmoid(beta g) * up(x)) with g = gate(x).

    x (..., dim) -> (..., dim). Within a mixture of experts `linear` makes linears that hold all experts, and `groups` says
    which tokens are whose: nothing else changes.
    """

    telling = ({"beta": 2.0},)

    # `linear` and not nn.Linear: within a mixture it makes one that holds all experts.
    def __init__(
        self,
        dim: int,
        ffn_dim: int,
        linear: Callable[..., nn.Module],
        /,
        *,
        beta: float = 1.0,  # steepness of the gate
    ):
        super().__init__()
        self.beta = beta
        # Both are of the role ffn_in: tensor parallelism splits them by columns, and ffn_out by rows.
        self.gate = linear(dim, ffn_dim, role="ffn_in")
        self.up = linear(dim, ffn_dim, role="ffn_in")
        self.down = linear(ffn_dim, dim, role="ffn_out")

    def forward(self, x: Tensor, groups: Tensor | None = None) -> Tensor:
        g = self.gate(x, groups)
        return self.down(g * torch.sigmoid(self.beta * g) * self.up(x, groups), groups)


# Not of the class: `llmlab check` holds the part to what this says, at every setting of its options. What a twin is given, and
# which outputs it may give, is listed in the docstring of llmlab.check.twins.observers.ffn.
@twin("ffn", "my_ffn", source="Shazeer 2020, equation 6")
def definition(given: Given) -> dict[str, np.ndarray]:
    def glu(x: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
        g = x @ gate.T
        return g / (1 + np.exp(-given.options["beta"] * g)) * (x @ up.T) @ down.T

    x, names = given.inputs["x"], ("gate", "up", "down")
    dense = glu(x, *(given.weights[f"dense.{name}.weight"] for name in names))
    first, _, third = zip(*(given.weights[f"experts.{name}.weight"] for name in names), strict=True)
    return {"dense": dense, "experts": np.concatenate([glu(x[:2], *first), glu(x[2:], *third)])}
