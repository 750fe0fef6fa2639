"""The part that a case is about, built as the framework builds it, and filled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from llmlab.check.subject import NotApplicable, Subject, generator, small_part
from llmlab.config.spec import PartSpec
from llmlab.sizes import Sizes

LENGTH = 7  # tokens of a text where no model is around


def tested_part(subject: Subject, *slots: str) -> PartSpec:
    """The part, if it is of one of these slots."""
    slot, name = subject.case.parts[0]
    if slot not in slots:
        raise NotApplicable(f"it is for {' and '.join(slots)} parts")
    return small_part(slot, name)


def part_sizes(subject: Subject, **changes: Any) -> Sizes:
    """Those of the case's last stack, with widths that a position turns and embeds in."""
    own = subject.spec.stacks[-1].sizes
    return own.but(rotary_dim=own.head_dim, embed_dim=own.dim, **changes)


def build_random(factory: Any, *args: Any, std: float = 0.3) -> Any:
    """A module made on the meta device, with random values."""
    with torch.device("meta"):
        module = factory(*args)
    return fill_random(module.to_empty(device="cpu"), std) if isinstance(module, nn.Module) else module


@torch.no_grad()
def fill_random(module: nn.Module, std: float = 0.3) -> nn.Module:
    chance = generator(1)
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.normal_(0.0, std, generator=chance)
    return module.eval()


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=generator(seed))
