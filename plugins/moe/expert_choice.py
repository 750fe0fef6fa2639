"""Experts that choose their tokens. n tokens, E experts, c tokens an expert."""

import math

from torch import Tensor, nn

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Choice, Linear, no_reduce
from llmlab_plugins.moe.routers import Total, logits, z_loss


@register("moe", "expert_choice")
class ExpertChoice(nn.Module):
    """Each expert takes the c tokens that want it most, so all are equally loaded (Zhou et al. 2022, arXiv:2202.09368).

    (n, D) -> weights and tokens (E, c), c = n capacity / E, rounded up: of the softmax over experts the c largest values
    in each expert's column. A token may be taken by several experts or by none. n counts the valid tokens of a device's
    micro-batch, all its sequences together, so how a batch is cut makes a difference; padding is never taken.

    Whether a token is taken depends on the others, on those after it too: under a mask that hides anything a model reads
    the future that way. That is an error, but with `leak_future`; what such a model says of a text is then no
    probability, and it generates from another routing than it was trained with. Loss: model.moe.z times the router z-loss.
    """

    dense = False
    unused = ("moe.renormalise", "moe.balance")
    telling = ({"capacity": 1.25},)

    def __init__(
        self,
        sizes: Sizes,
        /,
        *,
        capacity: float | None = None,  # experts that a token has on average; None: model.moe.per_token
        leak_future: bool = False,  # allowed under a mask that hides something
    ):
        super().__init__()
        n_experts = sizes.moe.n_experts
        self.z, self.n_experts = sizes.moe.z, n_experts
        self.per_token = sizes.moe.per_token if capacity is None else capacity
        if not 0 < self.per_token <= n_experts:
            raise ValueError(f"moe.capacity={capacity} must be more than 0 and at most model.moe.n_experts={n_experts}")
        if not (sizes.sees_all or leak_future):
            raise ValueError(
                "moe=expert_choice lets tokens see the future, which the mask hides: experts choose among all tokens; "
                "choose moe=topk, or moe.leak_future=true to do it on purpose"
            )
        self.leaks = leak_future
        self.gate = Linear(sizes.dim, n_experts, role="router")

    def forward(self, x_nD: Tensor, valid: Tensor | None, total: Total = no_reduce) -> Choice:
        z_nE = logits(self.gate, x_nD)
        p_En = z_nE.softmax(-1).T
        # A number on the host, though that waits for the GPU: topk's k can't be a tensor.
        n = len(x_nD) if valid is None else int(valid.sum())
        if valid is not None:
            # Below every probability: c is at most the number of valid tokens, so padding is never among the largest.
            p_En = p_En.masked_fill(~valid, -1.0)
        weights_Ec, tokens_Ec = p_En.topk(math.ceil(n * self.per_token / self.n_experts), -1)
        return Choice(weights_Ec, tokens_Ec, self.z * z_loss(z_nE, valid, total) if self.z else None)
