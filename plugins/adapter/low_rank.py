"""Low-rank updates of linears: a frozen weight and a product of two small matrices that is learnt."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmlab.registry import register
from llmlab.slots import Linear


@register("adapter", "dora", decomposed=True)
@register("adapter", "lora")
class LowRank:
    """A low-rank update of linears (LoRA: Hu et al. 2021, arXiv:2106.09685): W x + (alpha / rank) B A x, W frozen.

    lora: Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685): W x + (alpha / rank) B A x, of which A and B are learnt.
    dora: Weight-decomposed low-rank adaptation (Liu et al. 2024, arXiv:2402.09353): lora's rows, each scaled to a norm that
    is learnt and begins at that of W's row.

    A (rank, in) begins uniform in +-1 / sqrt(in), as PEFT's, B (out, rank) at 0: at first nothing changes. Linears are named
    by role; the experts of a mixture, whose linears are grouped, and its router are left as they are.
    """

    telling = (
        {"rank": 3},
        {"alpha": 7.0},
        {"rank_stabilised": True, "rank": 4},
        {"targets": ["k", "out"]},
        {"dropout": 0.5},
    )

    def __init__(
        self,
        *,
        rank: int = 8,  # of the update
        alpha: float = 16.0,  # the update is scaled by alpha / rank
        rank_stabilised: bool = False,  # by alpha / sqrt(rank) (rsLoRA: Kalajdzievski 2023, arXiv:2312.03732)
        decomposed: bool = False,  # norms of rows are learnt too
        dropout: float = 0.0,  # on the input of the update
        targets: list[str] = ["q", "v"],  # noqa: B006  roles of linears: q, k, v, out, ffn_in, ffn_out
    ):
        known = ("q", "k", "v", "out", "ffn_in", "ffn_out")
        if rank < 1:
            raise ValueError(f"adapter.rank must be at least 1, but is {rank}")
        if not 0 <= dropout < 1:
            raise ValueError(f"adapter.dropout must be in [0, 1), but is {dropout}")
        if not targets or (unknown := [t for t in targets if t not in known]):
            wrong = f"{unknown[0]!r} is none" if targets else "there is none"
            raise ValueError(f"adapter.targets must be roles of linears, but {wrong}; choose of {', '.join(known)}")
        self.rank, self.scale = rank, alpha / (rank**0.5 if rank_stabilised else rank)
        self.decomposed, self.dropout, self.targets = decomposed, dropout, tuple(targets)

    def __call__(self, linear: Linear) -> nn.Module | None:
        return Update(linear, self) if linear.role in self.targets else None

    def merged(self, weight: Tensor, learnt: Mapping[str, Tensor]) -> Tensor:
        """The weight (out, in) that does what a weight and its update do, from the update's tensors by name."""
        # In float64: the product is rounded once, when it is the weight's own type again.
        whole = weight.double() + self.scale * (learnt["b.weight"].double() @ learnt["a.weight"].double())
        if self.decomposed:
            norm = weight.double().norm(dim=1) + learnt["magnitude"].double()
            whole = whole * (norm / whole.norm(dim=1))[:, None]
        return whole.to(weight.dtype)


class Update(nn.Module):
    """(x, y) -> the linear's output y of x, updated."""

    constants, role = {"magnitude": 0.0}, "adapter"

    def __init__(self, linear: Linear, how: LowRank):
        super().__init__()
        n_in, n_out = linear.in_features, linear.out_features
        self.a = Linear(n_in, how.rank, role="adapter")
        self.b = Linear(how.rank, n_out, role="adapter")
        self.a.uniform = {"weight": n_in**-0.5}  # type: ignore[assignment]  # nn.Module's own annotation
        self.b.constants = {"weight": 0.0}  # type: ignore[assignment]
        self.scale, self.dropout = how.scale, how.dropout
        # What a row's norm has more than that of the frozen weight's row, which is not known yet: to learn it is to learn the
        # norm itself, with the same gradient.
        self.magnitude = nn.Parameter(torch.empty(n_out)) if how.decomposed else None

    def forward(self, x: Tensor, y: Tensor, linear: Linear) -> Tensor:
        if self.magnitude is None:
            return y + self.scale * self.b(self.a(F.dropout(x, self.dropout, self.training)))
        weight, bias = linear.weight, linear.bias
        with torch.no_grad():
            own = weight.float().norm(dim=1)
            # Section 4.3 of the paper: the norm of the updated weight is taken for a constant, which saves memory.
            whole = (weight.float() + self.scale * (self.b.weight.float() @ self.a.weight.float())).norm(dim=1)
        gain = ((own + self.magnitude) / whole).to(y.dtype)
        plain = y if bias is None else y - bias
        if self.dropout and self.training:
            # As PEFT: what is scaled is the output for the input that the update sees.
            x = F.dropout(x, self.dropout, self.training)
            plain, y = F.linear(x, weight), y
            update = (gain - 1) * plain + gain * self.scale * self.b(self.a(x))
            return y + update
        found = gain * (plain + self.scale * self.b(self.a(x)))
        return found if bias is None else found + bias
