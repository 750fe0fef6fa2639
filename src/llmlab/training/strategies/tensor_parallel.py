"""Tensor parallelism (Megatron-LM: Shoeybi et al. 2019, arXiv:1909.08053), planned from the roles of parameters.

Attention, feed-forwards and experts are regions. What enters one is the same on every rank; its linears of the roles q, k,
v and ffn_in hold a share of the rows (whole heads, inner units), those of out and ffn_out the same share of the columns,
and the sum of what these give over the ranks leaves the region. Every other parameter in it is whole on each rank, and its
gradient is summed. Outside of the regions all ranks compute the same; tables of the roles embed and head are kept in shards
and gathered where they are used. An expert is split like a feed-forward; no rank has experts of its own.

Dropout outside of the regions is the same on all ranks of a group. Inside, each rank draws the same pattern for heads and
units of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from llmlab import attributes
from llmlab.errors import UserError
from llmlab.model import build
from llmlab.model.experts import MixtureOfExperts

if TYPE_CHECKING:
    from llmlab.config.spec import ModelSpec
    from llmlab.model.model import Model
    from llmlab.model.stack import Layer

COLUMN, ROW, TABLE = ("q", "k", "v", "ffn_in"), ("out", "ffn_out"), ("embed", "head")

Read = Callable[[DTensor], Tensor]


def check(size: int, spec: ModelSpec) -> None:
    """UserError in a line if the model can't be split over `size` devices."""
    if size == 1:
        return
    choice = f"strategy.tensor_parallel={size}"
    if spec.adapter is not None:
        raise UserError(f"{choice}: adapter={spec.adapter.name} can't be split; choose strategy=fsdp")
    model = build.assemble(spec)
    positions = [p for stack in model.all_stacks() for p in stack.positions]
    for name in (type(p).__name__ for p in positions if p.scope == "layer" or p.projects):
        raise UserError(f"{choice}: position={name} scores the queries of all heads; choose strategy=fsdp")
    for region in regions(model):
        if hasattr(region, "score"):
            _check_attention(region, size, choice)
        for module, name, dim in planned(region):
            if dim is not None and (width := getattr(module, name).shape[dim]) % size:
                raise UserError(f"{choice} does not divide the {width} inner units of a feed-forward (model.ffn_dim)")


def _check_attention(attention: nn.Module, size: int, choice: str) -> None:
    heads = getattr(attention, "n_heads", None)
    if heads is None:
        raise UserError(f"{choice}: {type(attention).__name__} does not say its n_heads, so it can't be split")
    kv_heads = getattr(attention, "n_kv_heads", heads)
    if heads % size:
        raise UserError(f"{choice} does not divide model.n_heads={heads}")
    if kv_heads % size and kv_heads != 1:
        raise UserError(f"{choice} does not divide model.n_kv_heads={kv_heads}")
    if getattr(attention, "sink", None) is not None:
        raise UserError(f"{choice}: model.attention.sink can't be split; choose strategy=fsdp")
    qk_norm = getattr(attention, "qk_norm", None)
    if qk_norm in ("full", "each_head"):
        raise UserError(
            f"{choice}: model.attention.qk_norm={qk_norm} is of all heads; choose qk_norm=head or strategy=fsdp"
        )


def split(model: Model, mesh: DeviceMesh) -> None:
    """Split a model on the meta device over the ranks of `mesh`, in place. Paths and the code of parts stay as they are:
    a part that reads a parameter gets this rank's piece of it."""
    size = mesh.size()
    for stack in model.all_stacks():
        for position in cast("list[Any]", list(stack.positions)):
            if position.has_bias:
                position.bias = functools.partial(_own_heads, position.bias, mesh)
    done: set[nn.Parameter] = set()
    for region in regions(model):
        # with_kwargs: without it a hook sees positional arguments only, and a cross-attention's source would slip past.
        region.register_forward_pre_hook(functools.partial(_enter, mesh), with_kwargs=True)
        for module, name, dim in list(planned(region)):
            read = functools.partial(_shared, mesh) if dim is None else _piece
            # A row-parallel linear gives a summand; its bias would be added on every rank, so each adds its share.
            if name == "bias" and getattr(module, "role", None) in ROW:
                read = functools.partial(_share_of_sum, mesh)
            _hold(module, name, mesh, dim, read)
            done.add(module._parameters[name])  # type: ignore[arg-type]
        for module in region.modules():
            if getattr(module, "role", None) in ROW:
                module.register_forward_hook(functools.partial(_leave, mesh))
        if hasattr(region, "score"):
            # Parts reshape by these. One key-value head is whole on each rank, as there is nothing of it to split.
            region.n_heads //= size
            if getattr(region, "n_kv_heads", 1) > 1:
                region.n_kv_heads //= size
    for module in list(model.modules()):
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and parameter not in done:
                in_shards = (
                    getattr(module, "role", None) in TABLE and name == "weight" and parameter.shape[0] % size == 0
                )
                _hold(module, name, mesh, 0 if in_shards else None, _gathered if in_shards else _piece)


def regions(model: Model) -> Iterator[Any]:
    """Attention, feed-forwards and experts, each by itself."""
    for stack in model.all_stacks():
        for layer in cast("list[Layer]", list(stack.layers)):
            yield layer.attention
            if layer.cross_attention is not None:
                yield layer.cross_attention
            if not isinstance(layer.ffn, MixtureOfExperts):
                yield layer.ffn
                continue
            yield layer.ffn.experts
            if layer.ffn.shared is not None:
                yield layer.ffn.shared


def planned(region: nn.Module) -> Iterator[tuple[nn.Module, str, int | None]]:
    """(module, name, dimension that is split or None) of each parameter in a region."""
    whole = {getattr(region, name, None) for name in attributes.get(region, "attention", "latents")}
    one_kv_head = getattr(region, "n_kv_heads", None) == 1
    for module in region.modules():
        role = getattr(module, "role", None)
        keep = module in whole or (one_kv_head and role in ("k", "v"))
        for name, parameter in module.named_parameters(recurse=False):
            last = parameter.dim() - 1
            if keep or role not in (*COLUMN, *ROW):
                yield module, name, None
            elif name == "bias":
                yield module, name, last if role in COLUMN else None
            else:
                yield module, name, last - 1 if role in COLUMN else last


# ---------------------------------------------------------------- parameters: held as DTensors, read as this rank's tensors


class Held:
    """Mixin of a module whose parameters are DTensors: an attribute gives what `reads` makes of it.

    Between forwards FSDP holds them sharded over the data-parallel ranks too, on a mesh of two dimensions, as they are.
    """

    reads: dict[str, Read]

    # Only asked for what is no plain attribute: nn.Module keeps its parameters in a dict and finds them here as well.
    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)  # type: ignore[misc]
        # FSDP2 shards over a second mesh dimension between forwards, and reads its own parameters as they are.
        return self.reads[name](value) if isinstance(value, DTensor) and value.device_mesh.ndim == 1 else value


@functools.cache
def _holding(cls: type[nn.Module]) -> type[nn.Module]:
    return type(cls.__name__, (Held, cls), {})


def _hold(module: nn.Module, name: str, mesh: DeviceMesh, dim: int | None, read: Read) -> None:
    if not isinstance(module, Held):
        # As FSDP2 does: a subclass of the instance's own, so that isinstance and paths stay what they were.
        module.__class__ = _holding(type(module))  # type: ignore[arg-type]
        module.reads = {}  # type: ignore[assignment]
    cast(Held, module).reads[name] = read
    placement = Replicate() if dim is None else Shard(dim)
    parameter = module._parameters[name]
    assert parameter is not None
    module._parameters[name] = nn.Parameter(
        # None: each rank cuts its own piece. The default broadcasts the first rank's, and on the meta device there is nothing.
        distribute_tensor(parameter.data, mesh, [placement], src_data_rank=None),
        requires_grad=parameter.requires_grad,
    )


def _piece(parameter: DTensor) -> Tensor:
    return parameter.to_local()


def _gathered(parameter: DTensor) -> Tensor:
    # By default `to_local` takes the gradient for replicated, which it is outside of the regions: in the backward each
    # rank cuts out its own rows, without communication.
    return parameter.redistribute(placements=[Replicate()]).to_local()


def _shared(mesh: DeviceMesh, parameter: DTensor) -> Tensor:
    return copied(parameter.to_local(), mesh)


def _share_of_sum(mesh: DeviceMesh, parameter: DTensor) -> Tensor:
    return copied(parameter.to_local(), mesh) / mesh.size()


# ---------------------------------------------------------------- activations


def copied(x: Tensor, mesh: DeviceMesh) -> Tensor:
    """The same on every rank -> itself; its gradient is the sum over the ranks."""
    # grad_placements tells DTensor that the gradients which come back are summands; by default it takes them for equal.
    return DTensor.from_local(x, mesh, [Replicate()], run_check=False).to_local(grad_placements=[Partial()])


def summed(x: Tensor, mesh: DeviceMesh) -> Tensor:
    """The sum over the ranks, the same on every rank, as is its gradient."""
    # run_check would broadcast from the first rank to compare.
    return DTensor.from_local(x, mesh, [Partial()], run_check=False).redistribute(placements=[Replicate()]).to_local()


def _enter(mesh: DeviceMesh, region: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    def entering(value: object) -> object:
        # Ids and masks have no gradient to sum, and without gradients the wrapping would cost its time for nothing.
        if isinstance(value, Tensor) and value.is_floating_point() and value.requires_grad and torch.is_grad_enabled():
            return copied(value, mesh)
        return value

    return tuple(map(entering, args)), {name: entering(value) for name, value in kwargs.items()}


def _leave(mesh: DeviceMesh, linear: nn.Module, args: tuple, y: Tensor) -> Tensor:
    return summed(y, mesh)


def _own_heads(bias: Callable[..., Tensor | None], mesh: DeviceMesh, *given: object) -> Tensor | None:
    """The share of this rank's heads in a position's bias (..., N, T, S)."""
    whole = bias(*given)
    if whole is None:
        return None
    # DTensor shards in chunks of the same order (`Shard`), so rank r has the r-th run of heads, as its rows of q are.
    heads = whole.shape[-3] // mesh.size()
    return copied(whole, mesh).narrow(-3, mesh.get_local_rank() * heads, heads)
