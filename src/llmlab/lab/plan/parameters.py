"""What a strategy makes of a model's parameters: a device's share of each, and of what the optimizer keeps for it."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from llmlab.model import roles
from llmlab.model.model import Model
from llmlab.slots import Role


@dataclass(frozen=True)
class Parameter:
    """shape: on one device of a tensor-parallel group. layer: its layer, counted over all stacks; -1: of none."""

    path: str
    shape: tuple[int, ...]
    role: Role
    layer: int = -1

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def shard(self, world: int) -> tuple[int, ...]:
        """Of the first of `world` ranks, which has the largest: FSDP2 shards rows, DTensors too."""
        return (-(-self.shape[0] // world), *self.shape[1:])


def table(model: Model) -> list[Parameter]:
    """In the order of `roles.parameters`."""
    layer_of: dict[int, int] = {}
    layers = [layer for stack in model.all_stacks() for layer in stack.layers]
    for i, layer in enumerate(layers):
        layer_of |= {id(p): i for p in layer.parameters()}
    return [Parameter(path, tuple(p.shape), role, layer_of.get(id(p), -1)) for path, p, role in roles.parameters(model)]


@functools.lru_cache(maxsize=32)
def state_bytes(optimizer: Any, parameters: tuple[Parameter, ...], dtype: torch.dtype, world: int = 1) -> int:
    """What an optimizer part keeps for a rank's shards, its step counters included: by doing a step without values."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        given = []
        for p in parameters:
            shard = nn.Parameter(torch.empty(p.shard(world) if world > 1 else p.shape, dtype=dtype))
            shard.grad = torch.empty_like(shard)
            given.append((p.path, shard, p.role))
        return _after_a_step(optimizer.build(given))


@functools.lru_cache(maxsize=32)
def groups(optimizer: Any, parameters: tuple[Parameter, ...]) -> list[list[Parameter]]:
    """Parameters that an optimizer part treats alike, in its order."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        shown = [(p.path, nn.Parameter(torch.empty(p.shape)), p.role) for p in parameters]
        of = {id(q): p for p, (_, q, _) in zip(parameters, shown, strict=True)}
        return [[of[id(q)] for q in group["params"]] for group in optimizer.build(shown).param_groups]


@functools.lru_cache(maxsize=32)
def flat_state_bytes(optimizer: Any, parameters: tuple[Parameter, ...], pieces: tuple[int, ...]) -> int:
    """What an optimizer part keeps where each of its groups is one flat float32 tensor of so many numbers."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        shown = [(p.path, nn.Parameter(torch.empty(p.shape)), p.role) for p in parameters]
        made = optimizer.build(shown)
        for group, size in zip(made.param_groups, pieces, strict=True):
            flat = nn.Parameter(torch.empty(size))
            flat.grad = torch.empty_like(flat)
            group["params"] = [flat]
        return _after_a_step(made)


def _after_a_step(made: torch.optim.Optimizer) -> int:
    made.step()
    kept: list[Tensor] = [v for s in made.state.values() for v in s.values() if isinstance(v, Tensor)]
    return sum(v.numel() * v.element_size() for v in kept)
