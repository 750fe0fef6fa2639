"""The part under test, built as the framework builds it and filled with random values."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from llmlab.check.subject import NotApplicable, Subject, generator, small_part
from llmlab.config.spec import PartSpec
from llmlab.sizes import Sizes

P = ParamSpec("P")
T = TypeVar("T")
LENGTH = 7  # tokens of a text for a part without a model


def tested_part(subject: Subject, *slots: str) -> PartSpec:
    """The part under test. NotApplicable if it is of none of these slots."""
    slot, name = subject.case.parts[0]
    if slot not in slots:
        raise NotApplicable(f"it is for {' and '.join(slots)} parts")
    return small_part(slot, name)


def part_sizes(subject: Subject) -> Sizes:
    """Sizes of the last stack, with the widths that the attention and the embedding part would give a position."""
    sizes = subject.spec.stacks[-1].sizes
    return sizes.but(rotary_dim=sizes.head_dim, embed_dim=sizes.dim)


def build_random(factory: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """A part built on the meta device, as the framework does it, and filled if it is a module.

    A part that makes values in its constructor, as tables of cosines, gets meta tensors there and fails here, not in a run.
    """
    with torch.device("meta"):
        part = factory(*args, **options)
    if isinstance(part, nn.Module):
        # `Module.to` refuses meta tensors, as there is nothing to copy.
        fill_random(part.to_empty(device="cpu"))
    return part


@torch.no_grad()
def fill_random(module: nn.Module, std: float = 0.3) -> nn.Module:
    """Fill parameters and buffers in place with normal values, and switch to eval mode."""
    chance = generator(1)
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.normal_(0.0, std, generator=chance) if tensor.is_floating_point() else tensor.zero_()
    return module.eval()


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=generator(seed))
