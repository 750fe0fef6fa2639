"""Routers by which a token chooses its experts. n tokens, k experts a token, E experts."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Cost, Linear, Routing, no_reduce


def logits(gate: Linear, x_nD: Tensor) -> Tensor:
    """(n, E) in float32, under autocast too."""
    # Switch Transformer (arXiv:2101.03961), section 2.4: routing in bfloat16 is unstable.
    with torch.autocast(x_nD.device.type, enabled=False):
        return F.linear(x_nD.float(), gate.weight.float())


def scores(gate: Linear, tokens: int) -> Cost:
    """The cost of `logits`. Sums over tokens for the balance loss are statistics, not products that make the output."""
    return Cost(flops=2.0 * tokens * gate.weight.numel())


Total = Callable[[Tensor], Tensor]


def balance(p_nE: Tensor, experts_nk: Tensor, valid: Tensor | None, total: Total = no_reduce) -> Tensor:
    """E sum_e f_e P_e over the valid tokens of the micro-batch on all ranks: f the share of visits, P the mean
    probability. 1 where both are uniform."""
    n_experts = p_nE.shape[-1]
    w_n = p_nE.new_ones(len(p_nE)) if valid is None else valid.to(p_nE.dtype)
    visits_E = p_nE.new_zeros(n_experts)
    # Counts have no gradient: the router learns through the mean probability alone (Switch, equation 4).
    # Not bincount, which waits for the GPU to learn how long its result is.
    visits_E = visits_E.index_add(0, experts_nk.reshape(-1), w_n.repeat_interleave(experts_nk.shape[-1]))
    n, visits_E, p_E = total(torch.cat([w_n.sum()[None], visits_E, w_n @ p_nE])).split([1, n_experts, n_experts])
    n = n.clamp(min=1)
    # Over k as well, so that uniform routing gives 1 for any k; transformers' load_balancing_loss_func gives k there.
    return n_experts * (visits_E / (n * experts_nk.shape[-1]) * (p_E / n)).sum()


def z_loss(z_nE: Tensor, valid: Tensor | None, total: Total = no_reduce) -> Tensor:
    """Mean square of the log-partition over the valid tokens of the micro-batch on all ranks."""
    square_n = z_nE.logsumexp(-1).square()
    w_n = torch.ones_like(square_n) if valid is None else valid.to(square_n.dtype)
    square, n = total(torch.stack([(square_n * w_n).sum(), w_n.sum()]))
    return square / n.clamp(min=1)


def check_groups(sizes: Sizes, groups: int, kept: int) -> None:
    """ValueError unless `kept` of `groups` equal groups hold as many experts as a token visits."""
    n, k = sizes.moe.n_experts, sizes.moe.per_token
    if groups < 1 or n % groups or kept > groups or n // groups * kept < k:
        raise ValueError(
            f"moe.groups_kept={kept} of moe.groups={groups} groups can't give model.moe.per_token={k} "
            f"of model.moe.n_experts={n} experts"
        )


def in_kept_groups(scores_nE: Tensor, groups: int, kept: int, best: int) -> Tensor:
    """Scores, but -inf outside of the `kept` groups whose `best` highest scores have the highest sum."""
    if kept == groups:
        return scores_nE
    grouped = scores_nE.unflatten(-1, (groups, -1))
    of_group = grouped.topk(min(best, grouped.shape[-1]), -1).values.sum(-1)
    # -inf, not 0: scores with DeepSeek-V3's bias may be negative, and an expert of a dropped group would beat them at 0.
    stays = torch.zeros_like(of_group, dtype=torch.bool).scatter(-1, of_group.topk(kept, -1).indices, True)
    return grouped.masked_fill(~stays[..., None], float("-inf")).flatten(-2)


@register("moe", "topk")
class TopK(nn.Module):
    """The k experts of highest softmax probability (Shazeer et al. 2017, arXiv:1701.06538; Mixtral, Qwen-MoE).

    (n, D) -> weights and experts (n, k); weights sum to 1 if model.moe.renormalise. Loss: model.moe.balance times the
    Switch balance loss (Fedus et al. 2021, arXiv:2101.03961; 1 at uniform routing) plus model.moe.z times the mean
    square of the log-partition (ST-MoE: Zoph et al. 2022, arXiv:2202.08906), over the valid tokens of a micro-batch on
    all devices. Where a step has several micro-batches it is their mean. Logits in float32. Groups are kept by their
    best expert (DeepSeek-V2 2024, arXiv:2405.04434).
    """

    dense = False
    telling = ({"groups": 2}, {"groups": 3, "groups_kept": 2})

    def __init__(
        self,
        sizes: Sizes,
        /,
        *,
        groups: int = 1,  # of equal size, that the experts are in
        groups_kept: int = 1,  # of which a token's experts are
    ):
        super().__init__()
        check_groups(sizes, groups, groups_kept)
        self.traits, self.groups, self.groups_kept = sizes.moe, groups, groups_kept
        self.gate = Linear(sizes.dim, sizes.moe.n_experts, role="router")

    def cost(self, tokens: int, keys: int) -> Cost:
        return scores(self.gate, tokens)

    def forward(self, x_nD: Tensor, valid: Tensor | None, total: Total = no_reduce) -> Routing:
        z_nE = logits(self.gate, x_nD)
        p_nE = z_nE.softmax(-1)
        weights_nk, experts_nk = in_kept_groups(p_nE, self.groups, self.groups_kept, 1).topk(self.traits.per_token, -1)
        # `norm_topk_prob`: Mixtral's weights sum to 1, those of Qwen1.5-MoE and DeepSeek-V2 do not.
        if self.traits.renormalise:
            weights_nk = weights_nk / weights_nk.sum(-1, keepdim=True)
        loss = None
        if self.traits.balance:
            loss = self.traits.balance * balance(p_nE, experts_nk, valid, total)
        if self.traits.z:
            loss = self.traits.z * z_loss(z_nE, valid, total) + (0.0 if loss is None else loss)
        return Routing(weights_nk, experts_nk, loss)


@register("moe", "sigmoid")
class Sigmoid(nn.Module):
    """The k experts of highest sigmoid score, kept in balance by a bias (DeepSeek-AI 2024, arXiv:2412.19437).

    (n, D) -> weights and experts (n, k). The bias (E,) counts for the choice only; after a step it moves by `rate`
    towards experts that had too few tokens (Wang et al. 2024, arXiv:2408.15664). Groups are kept by the sum of their
    two best. Weights are the scores, divided by their sum if model.moe.renormalise. Loss: model.moe.balance times the
    balance loss of the scores, over the valid tokens of a micro-batch on all devices.
    """

    dense = False
    bias: Tensor
    unused = ("moe.z",)
    telling = ({"groups": 2}, {"groups": 3, "groups_kept": 2}, {"rate": 0.05})

    def __init__(
        self,
        sizes: Sizes,
        /,
        *,
        groups: int = 1,  # of equal size, that the experts are in
        groups_kept: int = 1,  # of which a token's experts are
        rate: float = 0.001,  # by which the bias moves after a step
    ):
        super().__init__()
        self.traits, self.groups, self.groups_kept, self.rate = sizes.moe, groups, groups_kept, rate
        check_groups(sizes, groups, groups_kept)
        self.gate = Linear(sizes.dim, sizes.moe.n_experts, role="router")
        # float32 under every precision: a step of 0.001 is lost beside 1 in bfloat16, whose numbers are 0.008 apart there.
        self.register_buffer("bias", torch.empty(sizes.moe.n_experts, dtype=torch.float32))

    def cost(self, tokens: int, keys: int) -> Cost:
        return scores(self.gate, tokens)

    def forward(self, x_nD: Tensor, valid: Tensor | None, total: Total = no_reduce) -> Routing:
        scores_nE = logits(self.gate, x_nD).sigmoid()
        # float(): a model that is cast to bfloat16 as a whole casts its buffers, too.
        biased_nE = in_kept_groups(scores_nE.detach() + self.bias.float(), self.groups, self.groups_kept, 2)
        experts_nk = biased_nE.topk(self.traits.per_token, -1).indices
        weights_nk = scores_nE.gather(-1, experts_nk)
        if self.traits.renormalise:
            # DeepSeek's constant: sigmoids may all underflow, where a softmax sums to 1.
            weights_nk = weights_nk / (weights_nk.sum(-1, keepdim=True) + 1e-20)
        loss = None
        if self.traits.balance:
            # Sigmoids don't sum to 1: DeepSeek-V3 balances the affinities over their sum (section 2.1.2).
            p_nE = scores_nE / (scores_nE.sum(-1, keepdim=True) + 1e-20)
            loss = self.traits.balance * balance(p_nE, experts_nk, valid, total)
        return Routing(weights_nk, experts_nk, loss)

    @torch.no_grad()
    def after_step(self, load: Tensor) -> None:
        load = load.to(self.bias.device, torch.float32)
        # Algorithm 1 of Wang et al. 2024 takes the sign of the error alone, so that every bias moves by the same step.
        self.bias += self.rate * torch.sign(load.mean() - load)
