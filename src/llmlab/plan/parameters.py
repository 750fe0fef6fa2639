"""A model's parameters under a strategy: a device's share of each, and of what the optimizer keeps for it."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from llmlab.errors import UserError
from llmlab.model import roles
from llmlab.model.model import Model
from llmlab.slots import OptimizerPart, Role


@dataclass(frozen=True)
class Parameter:
    """shape: on one device of a tensor-parallel group. layer: its layer, counted over all stacks; -1: of none.
    learns: has a gradient and optimizer state."""

    path: str
    shape: tuple[int, ...]
    role: Role
    layer: int = -1
    learns: bool = True

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def shard(self, world: int) -> tuple[int, ...]:
        """The shape of the shard of the first of `world` ranks, which has the largest: FSDP2 shards rows, DTensors too."""
        return (-(-self.shape[0] // world), *self.shape[1:])


def table(model: Model) -> list[Parameter]:
    """In the order of `roles.parameters`."""
    layer_of: dict[int, int] = {}
    layers = [layer for stack in model.all_stacks() for layer in stack.layers]
    for i, layer in enumerate(layers):
        layer_of |= {id(p): i for p in layer.parameters()}
    return [
        Parameter(path, tuple(p.shape), role, layer_of.get(id(p), -1), p.requires_grad)
        for path, p, role in roles.parameters(model)
    ]


@functools.lru_cache(maxsize=32)
def state_bytes(optimizer: OptimizerPart, parameters: tuple[Parameter, ...], dtype: torch.dtype, world: int = 1) -> int:
    """Bytes that an optimizer part keeps for a rank's shards, its step counters included, found by a step without values."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        return _after_a_step(_built(optimizer, parameters, dtype, world)[0])


@functools.lru_cache(maxsize=32)
def groups(optimizer: OptimizerPart, parameters: tuple[Parameter, ...]) -> list[list[Parameter]]:
    """Parameters that an optimizer part treats alike, in its order."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        made, of = _built(optimizer, parameters)
        return [[of[id(q)] for q in group["params"]] for group in made.param_groups]


@functools.lru_cache(maxsize=32)
def flat_state_bytes(optimizer: OptimizerPart, parameters: tuple[Parameter, ...], pieces: tuple[int, ...]) -> int:
    """Bytes that an optimizer part keeps where each of its groups is one flat float32 tensor of so many numbers."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        made, _ = _built(optimizer, parameters)
        for group, size in zip(made.param_groups, pieces, strict=True):
            # As DeepSpeed does: the group's list then holds one flat tensor of this rank.
            group["params"] = [nn.Parameter(torch.empty(size))]
        return _after_a_step(made)


def _built(
    optimizer: OptimizerPart, parameters: tuple[Parameter, ...], dtype: torch.dtype = torch.float32, world: int = 1
) -> tuple[Optimizer, dict[int, Parameter]]:
    """An optimizer of tensors without values, and what each (by its `id`) stands for."""
    # Muon and its like refuse what is not a matrix: a shard has as many dimensions as the whole.
    shown = [nn.Parameter(torch.empty(p.shard(world) if world > 1 else p.shape, dtype=dtype)) for p in parameters]
    made = optimizer.build([(p.path, q, p.role) for p, q in zip(parameters, shown, strict=True)])
    return made, {id(q): p for p, q in zip(parameters, shown, strict=True)}


def _after_a_step(made: Optimizer) -> int:
    for p in [p for group in made.param_groups for p in group["params"]]:
        # An optimizer passes over what has no gradient, and keeps nothing for it.
        p.grad = torch.empty_like(p)
    try:
        # torch.optim reads its step counters (`_get_value`, `.item()`), which as fake tensors have no numbers.
        with Numbers():
            made.step()
    except (RuntimeError, TypeError) as e:
        why = (str(e).splitlines() or [""])[0]
        name = type(made).__name__
        raise UserError(
            f"optimizer: a step of {name} can't be done without values, so its memory is unknown: {why}"
        ) from e
    kept: list[Tensor] = [v for s in made.state.values() for v in s.values() if isinstance(v, Tensor)]
    return sum(v.numel() * v.element_size() for v in kept)


class Numbers(TorchDispatchMode):
    """Stand-ins for values that an optimizer asks of tensors without any: 1 for a number, False for a truth value. The size of
    what it keeps does not depend on values."""

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except DataDependentOutputException:
            # `.item()`, `bool()` and `float()` of a tensor all come as this op.
            if func is not torch.ops.aten._local_scalar_dense.default:
                raise
            dtype = args[0].dtype
            return False if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1
