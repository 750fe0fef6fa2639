"""AdamW."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from llmlab.registry import register
from llmlab.slots import Role


@register("optimizer", "adamw")
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2017, arXiv:1711.05101).

    Weight decay is on all that has two dimensions or more (nanoGPT), but for norms and biases; "no_embeddings": not on
    token, segment and position tables either. Fused where the devices allow it.
    """

    telling = (
        {"lr": 0.02},
        {"beta1": 0.5},
        {"beta2": 0.5},
        {"beta1": 0.0, "beta2": 0.0},
        {"eps": 0.1},
        {"eps": 0.0},
        {"weight_decay": 0.7},
        {"weight_decay": 0.0},
    )

    def __init__(
        self,
        *,
        lr: float = 1e-3,  # learning rate at its highest
        beta1: float = 0.9,  # decay of the mean of gradients
        # GPT-3 (Brown et al. 2020, appendix B) and LLaMA have 0.95 and a decay of 0.1; PyTorch's defaults are 0.999 and 0.01.
        beta2: float = 0.95,  # decay of the mean of their squares
        eps: float = 1e-8,  # added to the root of that
        weight_decay: float = 0.1,  # times the learning rate, a step
        decay: Literal["matrices", "no_embeddings"] = "matrices",  # what decays
    ):
        if not (0 <= beta1 < 1 and 0 <= beta2 < 1 and eps >= 0 and weight_decay >= 0):
            raise ValueError(
                "optimizer.beta1 and optimizer.beta2 must be at least 0 and less than 1, optimizer.eps and "
                f"optimizer.weight_decay at least 0, but they are {beta1}, {beta2}, {eps} and {weight_decay}"
            )
        self.lr, self.betas, self.eps, self.weight_decay = lr, (beta1, beta2), eps, weight_decay
        self.never: tuple[Role, ...] = ("norm", "bias")
        if decay == "no_embeddings":
            self.never += ("embed", "position")

    def build(self, params: Sequence[tuple[str, nn.Parameter, Role]]) -> torch.optim.Optimizer:
        decayed = [p for _, p, role in params if p.dim() >= 2 and role not in self.never]
        rest = [p for _, p, role in params if p.dim() < 2 or role in self.never]
        groups = [
            {"params": chosen, "weight_decay": decay}
            for chosen, decay in ((decayed, self.weight_decay), (rest, 0.0))
            if chosen
        ]
        # torch raises for parameters of other devices and types instead of falling back.
        fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for _, p, _ in params)
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=fused)
