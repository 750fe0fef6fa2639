"""FSDP2, alone or with tensor parallelism: parameters, gradients and optimizer state are sharded over the devices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, cast

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn

from llmlab.model import build
from llmlab.training.strategies import tensor_parallel
from llmlab.training.strategies.portable import ByPath, SafeCheckpointIO

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

    from llmlab.model.model import Model
    from llmlab.slots import Aux


P = ParamSpec("P")


class FSDP(ByPath, ModelParallelStrategy):
    """Fully sharded data parallel (Zhao et al. 2023, arXiv:2304.11277), one shard a layer and one for the rest.

    A layer's parameters are gathered before it runs and freed behind it. `data_parallel` groups of `tensor_parallel`
    devices; those of a group share each layer's work on the same rows (`tensor_parallel`).
    """

    whole = False

    def __init__(self, data_parallel: int, tensor_parallel: int, backend: str):
        super().__init__(
            data_parallel_size=data_parallel,
            tensor_parallel_size=tensor_parallel,
            # A folder of torch.distributed.checkpoint is sharded as the mesh was; ours holds whole tensors by path.
            save_distributed_checkpoint=False,
            process_group_backend=backend,
        )
        # ModelParallelStrategy's constructor takes none (Lightning 2.6).
        self._checkpoint_io = SafeCheckpointIO()

    @property
    def data_rank(self) -> int:
        return self.device_mesh["data_parallel"].get_local_rank()

    @property
    def data_world(self) -> int:
        return self.device_mesh["data_parallel"].size()

    def sum(self, tensor: Tensor) -> Tensor:
        # Not `self.reduce`: its group is the world by default, in which ranks that split a layer have the same rows.
        torch.distributed.all_reduce(tensor, group=self.device_mesh["data_parallel"].get_group())
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        pieces = [torch.empty_like(tensor) for _ in range(self.data_world)]
        torch.distributed.all_gather(pieces, tensor.contiguous(), group=self.device_mesh["data_parallel"].get_group())
        return torch.stack(pieces)

    def distribute(self, model: Model) -> None:
        from torch.distributed.fsdp import fully_shard

        data, split = self.device_mesh["data_parallel"], self.device_mesh["tensor_parallel"]
        # Before FSDP2, which then shards each rank's piece over the data-parallel ranks as well.
        if split.size() > 1:
            tensor_parallel.split(model, split)
        for stack in model.all_stacks():
            # Bottom-up: `fully_shard` of a module takes what no call before has taken of it as one group.
            for layer in cast("list[Any]", list(stack.layers)):
                layer.forward = functools.partial(_sealed, layer.forward)
                fully_shard(layer, mesh=data)
                # Behind `fully_shard`, whose own hook must see the sealed value: forward hooks run in the order of
                # their registration.
                layer.register_forward_hook(_unsealed)
        # Embeddings, positions, the last norms and heads, which several places may use. What has no backward would stay
        # gathered behind its forward: FSDP2 keeps a root's parameters for the backward that follows.
        frozen = not any(p.requires_grad for p in model.parameters())
        fully_shard(model, mesh=data, reshard_after_forward=True if frozen else None)
        # Here and not by Lightning, whose own asks modules for `reset_parameters` and warns of each that has none.
        build.materialise(model, self.root_device)

    def share(self, model: Model, companion: Model) -> None:
        # The tables belong to the root of the trained model, which gathers them in a forward of its own. Its gradients are
        # reduced at the end of the whole backward, so that those of the companion are among them.
        unshard = cast("FSDPModule", model).unshard
        companion.register_forward_pre_hook(lambda *_: unshard(), prepend=True)

    def _trained(self) -> nn.Module:
        """The model with its sharded parameters in place, also where a validation has left some gathered."""
        from torch.distributed.fsdp import FSDPModule

        assert self.lightning_module is not None
        # `state_dict` gives whatever parameters a module has now. A root keeps its own gathered behind a forward, as it expects
        # a backward; a validation has none.
        for module in self.lightning_module.modules():
            if isinstance(module, FSDPModule):
                # Nothing where it is sharded already.
                module.reshard()
        return super()._trained()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: object = None) -> None:
        # Not ModelParallelStrategy's own, which refuses a path that is a folder.
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        # ModelParallelStrategy's own would load into the sharded model right here, before it is known to fit.
        return self.checkpoint_io.load_checkpoint(Path(checkpoint_path))


# No dataclass and no tuple: FSDP2 looks into those (`collect_grad_tensors`, torch 2.13), as into dicts and lists.
class Sealed:
    """A value in which FSDP2 sees no tensors."""

    def __init__(self, aux: Aux | None):
        self.aux = aux


def _sealed(
    forward: Callable[P, tuple[Tensor, Aux | None]], *args: P.args, **kwargs: P.kwargs
) -> tuple[Tensor, Sealed]:
    """A layer's auxiliary loss, away from FSDP2: its gradient comes before any layer's backward, and FSDP2 gathers a layer
    when a gradient of one of its outputs comes, so that all would be gathered at once."""
    # `forward` is replaced on the instance: `__call__` looks it up there, and FSDP2's hooks stay around it.
    x, aux = forward(*args, **kwargs)
    return x, Sealed(aux)


def _unsealed(layer: nn.Module, args: tuple, out: tuple[Tensor, Sealed]) -> tuple[Tensor, Aux | None]:
    return out[0], out[1].aux
