"""An adapter of your own: a small module beside a frozen linear, which learns in its place."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from llmlab.registry import register
from llmlab.slots import Linear
from llmlab.twins import Given, twin


@register("adapter", "my_adapter")
class MyAdapter:
    """A learnt gain for each output of a linear (T-Few: Liu et al. 2022, arXiv:2205.05638).

    The part is called with each linear of a model, and gives the module that adapts it, or None. That module is called behind
    the linear, with its input, its output and itself; a method `before`, if it has one, with what the linear is to read.
    `merged` makes one weight of a linear's and of what was learnt, `merged_bias`, if there is one, likewise its bias.
    """

    telling = ({"targets": ["out"]},)

    def __init__(
        self,
        *,
        targets: list[str] = ["k", "v"],  # noqa: B006  roles of the linears that are adapted
    ):
        self.targets = tuple(targets)

    def __call__(self, linear: Linear) -> nn.Module | None:
        # A linear with a bias would have that scaled too, which no weight alone can do.
        return Gain(linear.out_features) if linear.role in self.targets and linear.bias is None else None

    def merged(self, weight: Tensor, learnt: Mapping[str, Tensor]) -> Tensor:
        return weight * (1 + learnt["gain"])[:, None]


class Gain(nn.Module):
    """(x, y, linear) -> y, each of its numbers times 1 + gain."""

    constants, role = {"gain": 0.0}, "adapter"  # at first nothing changes; the role says that it learns

    def __init__(self, width: int):
        super().__init__()
        self.gain = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor, y: Tensor, linear: nn.Module) -> Tensor:
        return y * (1 + self.gain)


# Not of the class: `llmlab check` holds the part to what this says, at every setting of its options. What a twin is given, and
# which outputs it may give, is listed in the docstring of llmlab.check.twins.observers.adapter.
@twin("adapter", "my_adapter", source="Liu et al. 2022, section 3.3")
def definition(given: Given) -> dict[str, np.ndarray]:
    scaled = given.inputs["weight"] * (1 + given.weights["gain"])[:, None]
    return {"plain": given.inputs["x"] @ scaled.T, "merged": scaled}
