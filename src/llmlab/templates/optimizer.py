"""An optimizer of your own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from llmlab.registry import register
from llmlab.slots import Role
from llmlab.twins import Given, twin


class Lion(torch.optim.Optimizer):
    """The step: c = beta1 m + (1 - beta1) g; p -= lr (sign(c) + decay p); m = beta2 m + (1 - beta2) g."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            # Lightning hands the forward and backward over as a closure, and `step` is under no_grad.
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                # In `self.state`: what is there is saved in a checkpoint and sharded with the parameter.
                m = self.state[p].setdefault("mean", torch.zeros_like(p))
                # Decoupled: the decay is no part of what the sign is taken of.
                p.mul_(1 - group["lr"] * group["weight_decay"])
                # The sign is of a mean that is not kept: Lion has another beta for what is.
                p.add_(torch.lerp(p.grad, m, beta1).sign(), alpha=-group["lr"])
                m.lerp_(p.grad, 1 - beta2)
        return loss


@register("optimizer", "my_optimizer")
class MyOptimizer:
    """Lion (Chen et al. 2023, arXiv:2302.06675): steps of one size by the sign of a running mean of gradients.

    Weight decay is on matrices and tables. It goes by role, never by name.
    """

    telling = ({"lr": 0.01}, {"beta1": 0.5}, {"beta2": 0.8}, {"weight_decay": 0.5})

    def __init__(
        self,
        *,
        lr: float = 1e-3,  # learning rate at its highest; a third to a tenth of AdamW's
        beta1: float = 0.9,  # weight of the running mean in a step
        beta2: float = 0.99,  # decay of the running mean
        weight_decay: float = 0.1,  # times the learning rate, a step
    ):
        if not (0 <= beta1 < 1 and 0 <= beta2 < 1 and weight_decay >= 0):
            raise ValueError(
                "optimizer.beta1 and optimizer.beta2 must be at least 0 and less than 1, optimizer.weight_decay at least "
                f"0, but they are {beta1}, {beta2} and {weight_decay}"
            )
        self.lr, self.betas, self.weight_decay = lr, (beta1, beta2), weight_decay

    def build(self, params: Sequence[tuple[str, nn.Parameter, Role]]) -> torch.optim.Optimizer:
        # Experts' biases have two dimensions too, (E, F), so that the role is asked as well.
        decayed = [p for _, p, role in params if p.dim() >= 2 and role not in ("norm", "bias")]
        rest = [p for _, p, role in params if p.dim() < 2 or role in ("norm", "bias")]
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        # Where only biases learn (train.learns) there is no matrix: a group without parameters is left out.
        return Lion([g for g in groups if g["params"]], {"lr": self.lr, "betas": self.betas})


# Not of the class: `llmlab check` holds the part to what this says, at every setting of its options. What a twin is given, and
# which outputs it may give, is listed in the docstring of llmlab.check.twins.observers.optimizer.
@twin("optimizer", "my_optimizer", source="Chen et al. 2023, algorithm 2")
def definition(given: Given) -> dict[str, np.ndarray]:
    lr, beta1, beta2, decay = (given.options[key] for key in ("lr", "beta1", "beta2", "weight_decay"))
    moved = {}
    for name in ("embed", "q", "norm", "bias", "bias.experts"):
        first = p = given.inputs[name]
        m, after = np.zeros_like(p), []
        for g, rate in zip(given.inputs[f"gradient/{name}"], lr * given.inputs["rates"], strict=True):
            decayed = decay if name in ("embed", "q") else 0.0
            p = p - rate * (np.sign(beta1 * m + (1 - beta1) * g) + decayed * p)
            m = beta2 * m + (1 - beta2) * g
            after.append(p - first)
        moved[name] = np.stack([after[n - 1] for n in (1, 2, 5, 10)])
    return moved
