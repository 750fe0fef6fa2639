"""A rank's part of a model under tensor parallelism, as `strategies.tensor_parallel` splits it, on one device."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from llmlab.model.model import Model
from llmlab.training.strategies.tensor_parallel import ROW, TABLE, planned, regions


def split(model: Model, size: int) -> None:
    """In place: parameters get a rank's shapes, and what is summed or gathered over ranks takes the memory that it would."""
    for position in [p for stack in model.all_stacks() for p in cast("list[Any]", list(stack.positions))]:
        if position.has_bias:
            position.bias = functools.partial(_own_heads, position.bias, size)
    for region in regions(model):
        for module, name, dim in list(planned(region)):
            if dim is not None:
                _cut(module, name, dim, size)
        for module in region.modules():
            if getattr(module, "role", None) in ROW:
                # The sum over ranks is a tensor beside the summand: DTensor's collectives are functional.
                module.register_forward_hook(lambda module, given, y: y.clone())
        if hasattr(region, "score"):
            region.n_heads //= size
            if getattr(region, "n_kv_heads", 1) > 1:
                region.n_kv_heads //= size
    for module in list(model.modules()):
        weight = module._parameters.get("weight")
        if getattr(module, "role", None) in TABLE and weight is not None and weight.shape[0] % size == 0:
            _cut(module, "weight", 0, size)
            module.__class__ = _gathering(type(module), size)  # type: ignore[arg-type]


def _cut(module: nn.Module, name: str, dim: int, size: int) -> None:
    whole = module._parameters[name]
    assert whole is not None
    shape = [n // size if i == dim % whole.dim() else n for i, n in enumerate(whole.shape)]
    module._parameters[name] = nn.Parameter(whole.detach().new_empty(shape), requires_grad=whole.requires_grad)


@functools.cache
def _gathering(cls: type[nn.Module], size: int) -> type[nn.Module]:
    """A class whose `weight` is made of the shards whenever it is read."""
    # A property of the class goes before nn.Module's __getattr__, which looks into `_parameters`.
    return type(
        cls.__name__, (cls,), {"weight": property(lambda self: Gathered.apply(self._parameters["weight"], size))}
    )


class GatherContext(FunctionCtx):
    """The context of `Gathered`."""

    rows: int


class Gathered(torch.autograd.Function):
    """A rank's rows -> those of all."""

    @staticmethod
    def forward(ctx: GatherContext, rows: Tensor, size: int) -> Tensor:
        ctx.rows = len(rows)
        return rows.new_empty(size * len(rows), *rows.shape[1:])

    @staticmethod
    def backward(ctx: GatherContext, *gradients: Tensor) -> Any:
        # A copy, as in DTensor (`_replicate_to_shard`, clone=True): the whole gradient is freed.
        return gradients[0][: ctx.rows].clone(), None


def _own_heads(bias: Callable[..., Tensor | None], size: int, *given: object) -> Tensor | None:
    whole = bias(*given)
    return None if whole is None else whole.narrow(-3, 0, whole.shape[-3] // size)
