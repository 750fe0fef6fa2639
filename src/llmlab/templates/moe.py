"""A router of your own: which experts a token visits. n tokens, k experts a token, E experts."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Linear, Routing


@register("moe", "my_moe")
class MyMoe(nn.Module):
    """The k experts of highest softmax probability (Shazeer et al. 2017, arXiv:1701.06538).

    x (n, D) -> weights and experts (n, k), and model.moe.balance times the balance loss over valid tokens, which is 1 at
    uniform routing (Fedus et al. 2021, arXiv:2101.03961). Dispatch, the experts and shared experts are the framework's.
    """

    dense = False
    unused = ("moe.z",)

    def __init__(self, sizes: Sizes, /, *, temperature: float = 1.0):  # by which the logits are divided
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"moe.temperature={temperature} must be more than 0")
        self.traits, self.temperature = sizes.moe, temperature
        self.gate = Linear(sizes.dim, sizes.moe.n_experts, role="router")

    def forward(self, x_nD: Tensor, valid: Tensor | None) -> Routing:
        with torch.autocast(x_nD.device.type, enabled=False):  # the choice is made in float32
            z_nE = F.linear(x_nD.float(), self.gate.weight.float()) / self.temperature
        p_nE = z_nE.softmax(-1)
        weights_nk, experts_nk = p_nE.topk(self.traits.per_token, -1)
        if self.traits.renormalise:
            weights_nk = weights_nk / weights_nk.sum(-1, keepdim=True)
        loss = self.traits.balance * balance(p_nE, experts_nk, valid) if self.traits.balance else None
        return Routing(weights_nk, experts_nk, loss)


def balance(p_nE: Tensor, experts_nk: Tensor, valid: Tensor | None) -> Tensor:
    """E sum_e (share of visits of e) (mean probability of e)."""
    if valid is not None:
        p_nE, experts_nk = p_nE[valid], experts_nk[valid]
    n_experts = p_nE.shape[-1]
    visits_E = torch.bincount(experts_nk.flatten(), minlength=n_experts) / max(experts_nk.numel(), 1)
    return n_experts * (visits_E * p_nE.mean(0)).sum()
