"""A router of your own: which experts a token visits. n tokens, k experts a token, E experts."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Linear, Routing, no_reduce
from llmlab.twins import Given, twin


@register("moe", "my_moe")
class MyMoe(nn.Module):
    """The k experts of highest softmax probability (Shazeer et al. 2017, arXiv:1701.06538).

    x (n, D) -> weights and experts (n, k), and model.moe.balance times the balance loss over valid tokens, which is 1 at
    uniform routing (Fedus et al. 2021, arXiv:2101.03961). Dispatch, the experts and shared experts are the framework's.
    """

    dense = False
    unused = ("moe.z",)
    telling = ({"temperature": 2.0},)

    def __init__(self, sizes: Sizes, /, *, temperature: float = 1.0):  # by which the logits are divided
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"moe.temperature={temperature} must be more than 0")
        self.traits, self.temperature = sizes.moe, temperature
        self.gate = Linear(sizes.dim, sizes.moe.n_experts, role="router")

    def forward(self, x_nD: Tensor, valid: Tensor | None, total: Callable[[Tensor], Tensor] = no_reduce) -> Routing:
        # Switch Transformers, section 2.4: a router in bfloat16 is unstable. Under autocast F.linear would cast float32
        # back.
        with torch.autocast(x_nD.device.type, enabled=False):
            z_nE = F.linear(x_nD.float(), self.gate.weight.float()) / self.temperature
        p_nE = z_nE.softmax(-1)
        weights_nk, experts_nk = p_nE.topk(self.traits.per_token, -1)
        if self.traits.renormalise:
            # Mixtral's way; DeepSeek-V2 and Qwen2-MoE keep the probabilities of all experts' softmax.
            weights_nk = weights_nk / weights_nk.sum(-1, keepdim=True)
        loss = self.traits.balance * balance(p_nE, experts_nk, valid, total) if self.traits.balance else None
        return Routing(weights_nk, experts_nk, loss)


def balance(p_nE: Tensor, experts_nk: Tensor, valid: Tensor | None, total: Callable[[Tensor], Tensor]) -> Tensor:
    """E sum_e (share of visits of e) (mean probability of e), over the valid tokens of all devices: `total` adds up."""
    if valid is not None:
        p_nE, experts_nk = p_nE[valid], experts_nk[valid]
    n_experts, k = p_nE.shape[-1], experts_nk.shape[-1]
    # A micro-batch of padding alone has no valid token.
    n = total(p_nE.new_tensor([float(len(p_nE))])).clamp(min=1)
    # Counts have no gradient: the loss learns by the mean probabilities alone (Fedus et al. 2021, equation 4).
    visits_E = total(torch.bincount(experts_nk.flatten(), minlength=n_experts).to(p_nE.dtype))
    return n_experts * (visits_E / (n * k) * total(p_nE.sum(0)) / n).sum()


# Not of the class: `llmlab check` holds the part to what this says, at every setting of its options. What a twin is given, and
# which outputs it may give, is listed in the docstring of llmlab.check.twins.observers.moe.
@twin("moe", "my_moe", source="Shazeer et al. 2017, section 2.1; Fedus et al. 2021, equation 4")
def definition(given: Given) -> dict[str, np.ndarray]:
    traits, x = given.sizes.moe, given.inputs["x"]
    e = np.exp(x @ given.weights["router.gate.weight"].T / given.options["temperature"])
    p = e / e.sum(-1, keepdims=True)
    chosen = p >= np.sort(p)[:, -traits.per_token, None]
    weights = p / (p * chosen).sum(-1, keepdims=True) if traits.renormalise else p

    def loss(kept: np.ndarray) -> np.ndarray:
        share = chosen[kept].sum(0) / chosen[kept].sum()
        return traits.balance * traits.n_experts * (share * p[kept].mean(0)).sum()

    everything = np.full(len(x), True)
    losses = {"loss": loss(everything), "padded_loss": loss(given.inputs["valid"])}
    return {"weights": np.where(chosen, weights, -1.0), **losses}
