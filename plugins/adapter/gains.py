"""Learnt gains of what linears give, or read: the smallest adapter there is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from llmlab.registry import register
from llmlab.slots import Linear

READS = "ffn_out"  # the role of linears of which the input has the gains, as the paper has it


@register("adapter", "ia3")
class Gains:
    """Infused adapter by inhibiting and amplifying inner activations, (IA)^3 (Liu et al. 2022, arXiv:2205.05638).

    A learnt gain for each number of keys, of values, and of what the second linear of a feed-forward reads. All begin at 1: at
    first nothing changes. Of other roles of linears it is the output that has the gains.
    """

    telling = ({"targets": ["q"]}, {"targets": ["k", "ffn_out"]}, {"targets": ["out"]})

    def __init__(
        self,
        *,
        targets: list[str] = ["k", "v", "ffn_out"],  # noqa: B006  roles of linears: q, k, v, out, ffn_in, ffn_out
    ):
        known = ("q", "k", "v", "out", "ffn_in", "ffn_out")
        if not targets or (unknown := [t for t in targets if t not in known]):
            wrong = f"{unknown[0]!r} is none" if targets else "there is none"
            raise ValueError(f"adapter.targets must be roles of linears, but {wrong}; choose of {', '.join(known)}")
        self.targets = tuple(targets)

    def __call__(self, linear: Linear) -> nn.Module | None:
        if linear.role not in self.targets:
            return None
        return Read(linear.in_features) if linear.role == READS else Given(linear.out_features)

    def merged(self, weight: Tensor, learnt: Mapping[str, Tensor]) -> Tensor:
        """The weight (out, in) that does what a weight and its gains do, from the gains by name."""
        if "read" in learnt:
            return weight * (1 + learnt["read"])
        return weight * (1 + learnt["given"])[:, None]

    def merged_bias(self, bias: Tensor, learnt: Mapping[str, Tensor]) -> Tensor:
        """Likewise the bias (out,)."""
        return bias * (1 + learnt["given"]) if "given" in learnt else bias


# What a gain has more than 1 is learnt, so that weight decay, where there is any, draws it to what changes nothing.
class Given(nn.Module):
    """(x, y, linear) -> y, each of its numbers times 1 + given."""

    constants, role = {"given": 0.0}, "adapter"

    def __init__(self, width: int):
        super().__init__()
        self.given = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor, y: Tensor, linear: nn.Module) -> Tensor:
        return y * (1 + self.given)


class Read(nn.Module):
    """x -> x, each of its numbers times 1 + read, before the linear; what that gives stays."""

    constants, role = {"read": 0.0}, "adapter"

    def __init__(self, width: int):
        super().__init__()
        self.read = nn.Parameter(torch.empty(width))

    def before(self, x: Tensor) -> Tensor:
        return x * (1 + self.read)

    def forward(self, x: Tensor, y: Tensor, linear: nn.Module) -> Tensor:
        return y
