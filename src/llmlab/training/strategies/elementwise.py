"""Optimizers that ZeRO can use, which gives them flat pieces of many tensors. Without Lightning: plans ask it too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from llmlab.errors import UserError
from llmlab.training import recipe

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Optimizers that treat each element alone: others would take a flat piece of many tensors for a matrix.
ELEMENTWISE = (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop)


def check(cfg: DictConfig) -> None:
    """UserError in a line where the optimizer that `cfg` names is not for the ZeRO strategy that it names."""
    name, part = cfg.strategy.name, cfg.optimizer["_part_"]
    made = recipe.part_factory(cfg, "optimizer")().build([("weight", nn.Parameter(torch.zeros(2, 2)), "other")])
    # The exact type: a subclass may read whole tensors, as torch.optim.AdamW itself is one of Adam.
    if type(made) not in ELEMENTWISE:
        raise UserError(
            f"optimizer={part} needs whole tensors, but strategy={name} gives it flat pieces; "
            "choose optimizer=adamw or strategy=fsdp"
        )
    if name.endswith("offload") and type(made) is not torch.optim.AdamW:
        raise UserError(f"strategy={name} has only Adam on the CPU: choose optimizer=adamw instead of {part}")
