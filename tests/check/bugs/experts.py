"""Mixture of experts: who goes where, and what keeps the experts in balance."""

from __future__ import annotations

import torch

from bugs import after, around, bug, replaced
from llmlab.model import model
from llmlab.model.experts import GroupedLinear, MixtureOfExperts
from llmlab_plugins.moe import routers
from llmlab_plugins.moe.expert_choice import ExpertChoice
from llmlab_plugins.moe.routers import Sigmoid, TopK


@bug("the gradient to the router is cut", gradients="moe=topk")
def router_gradient_cut():
    def forward(original, self, *given):
        routing = original(self, *given)
        return routing._replace(weights=routing.weights.detach())

    return around(TopK, "forward", forward)


@bug("the router's softmax is taken twice", reference="model=mixtral")
def softmax_twice():
    return around(routers, "logits", lambda logits, gate, x: logits(gate, x).softmax(-1))


@bug("the weights of the chosen experts do not sum to 1", traits="moe=topk", reference="model=mixtral")
def not_renormalised():
    from dataclasses import replace

    return after(TopK, lambda built: setattr(built, "traits", replace(built.traits, renormalise=False)))


@bug("the coefficient of the balance loss is always 0", balance="moe=topk")
def balance_always_zero():
    def forward(original, self, *given):
        routing = original(self, *given)
        return routing._replace(loss=None if routing.loss is None else routing.loss * 0)

    return around(TopK, "forward", forward)


@bug("the balance loss has no gradient", balance="moe=topk")
def balance_without_gradient():
    return around(routers, "balance", lambda balance, p, *rest: balance(p.detach(), *rest))


@bug("the balance loss has no coefficient", balance="moe=topk")
def balance_without_coefficient():
    def forward(original, self, *given):
        routing = original(self, *given)
        return routing._replace(loss=None if routing.loss is None else routing.loss / self.traits.balance)

    return around(TopK, "forward", forward)


@bug("the layers' balance losses get lost on their way up", balance="moe=topk")
def balance_lost():
    return replaced(model, _collect=lambda aux, losses, loads: None)


@bug("padding counts in the balance of experts", padding="moe=topk")
def padding_balanced():
    return around(routers, "balance", lambda balance, p, experts, valid, *rest: balance(p, experts, None, *rest))


@bug("each device balances the experts of its own tokens", ranks="moe=topk")
def balance_of_each_device():
    return around(routers, "balance", lambda balance, p, experts, valid, total=None: balance(p, experts, valid))


@bug("experts give nothing back to what they read", slope="moe=topk")
def experts_without_gradient():
    return around(GroupedLinear, "forward", lambda forward, self, x, groups: forward(self, x.detach(), groups))


@bug("experts choose padding", routing="moe=expert_choice")
def padding_chosen():
    return around(ExpertChoice, "forward", lambda forward, self, x, valid, *rest: forward(self, x, None, *rest))


@bug(
    "experts choose tokens under a mask that hides the future",
    refused=True,
    causality="moe=expert_choice objective=clm",
)
def expert_choice_leaks():
    def change(original, self, sizes, /, **options):
        original(self, sizes.but(sees_all=True), **options)

    return around(ExpertChoice, "__init__", change)


@bug("what experts give goes back to the wrong tokens", causality="moe=topk")
def sent_back_in_the_wrong_order():
    def sent(self, x, routing, valid):
        weights, experts, _ = routing
        k = experts.shape[1]
        order = experts.reshape(-1).argsort(stable=True)
        load = torch.bincount(experts.reshape(-1), minlength=self.n_experts)
        y = self.experts(x[order // k], load.cumsum(0).to(torch.int32))
        return (y.view(len(x), k, -1) * weights[..., None]).sum(1), load

    return replaced(MixtureOfExperts, _sent=sent)


@bug("the factor on the routed experts is lost", traits="moe=sigmoid", reference="model=deepseek_v3")
def routed_scale_lost():
    return after(MixtureOfExperts, lambda built: setattr(built, "scale", 1.0))


@bug("the bias that balances experts counts in their weights", reference="model=deepseek_v3")
def bias_in_the_weights():
    def forward(original, self, x, *rest):
        routing = original(self, x, *rest)
        scores = routers.logits(self.gate, x).sigmoid() + self.bias
        weights = scores.gather(-1, routing.experts)
        return routing._replace(weights=weights / weights.sum(-1, keepdim=True))

    return around(Sigmoid, "forward", forward)


@bug("the bias that balances experts is not saved", saved="moe=sigmoid")
def bias_not_saved():
    def change(built: Sigmoid) -> None:
        built._non_persistent_buffers_set.add("bias")

    return after(Sigmoid, change)


@bug("the bias that balances experts moves the wrong way", definition="moe=sigmoid")
def bias_moves_the_wrong_way():
    return around(Sigmoid, "after_step", lambda after_step, self, load: after_step(self, -load))


@bug("the z-loss is not squared", definition="moe=topk")
def z_loss_not_squared():
    def z_loss(z, valid, total=lambda tensor: tensor):
        kept = z if valid is None else z[valid]
        return kept.logsumexp(-1).mean()

    return replaced(routers, z_loss=z_loss)


@bug("the gate of the shared experts is left out", traits="moe=topk", reference="model=qwen2_moe")
def shared_gate_left_out():
    return after(MixtureOfExperts, lambda built: setattr(built, "shared_gate", None))
