"""The interface of every strategy here beside Lightning's own interface, and checkpoints that any of them can read.

A checkpoint holds the model's own names, and the optimizer's state by parameter path, whole tensors on the CPU. So it
depends neither on the order in which an optimizer part lists its parameters nor on where they lie.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torch.optim import Optimizer

from llmlab.config.spec import ModelSpec
from llmlab.model import build, roles
from llmlab.model.model import Model, Shared
from llmlab.runs import checkpoint
from llmlab.training.clipping import clip_by_norm

if TYPE_CHECKING:
    from llmlab.modules import Role
    from llmlab.slots import OptimizerPart


class SafeCheckpointIO(CheckpointIO):
    """Lightning's door to `llmlab.runs.checkpoint`."""

    def save_checkpoint(self, checkpoint_: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        # A copy: Lightning goes on using its own dict, and `state_dict` is taken out of this one.
        state = dict(checkpoint_)
        checkpoint.write(Path(path), state.pop("state_dict"), state)

    def load_checkpoint(
        self, path: str | Path, map_location: object = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        weights, state = checkpoint.read(Path(path))
        # weights_only is not looked at: nothing here is ever unpickled. map_location: the model moves them where it is.
        return {**state, "state_dict": weights}

    def remove_checkpoint(self, path: str | Path) -> None:
        shutil.rmtree(path, ignore_errors=True)


class BFloat16(Precision):
    """precision=bf16-true: parameters, gradients and optimizer state are bfloat16 (`Placement` makes them so).

    Lightning's own would also make buffers (a router's bias moves by less than bfloat16 can tell) and tables of positions
    bfloat16, by converting the module and by changing torch's default dtype.
    """

    precision = "bf16-true"  # type: ignore[assignment]


class ByPath(Strategy):
    """Mixin, before one of Lightning's strategies. What the module asks of it is in the first part, checkpoints follow.

    `data_rank` of `data_world` ranks see different data; ranks that share the work on the same rows have the same.
    """

    whole = True  # whether each rank holds the whole model, also after training

    # ---------------------------------------------------------------- what the module asks

    @property
    def data_rank(self) -> int:
        return self.global_rank  # type: ignore[attr-defined]

    @property
    def data_world(self) -> int:
        return self.world_size  # type: ignore[attr-defined]

    def sum(self, tensor: Tensor) -> Tensor:
        """Over the data-parallel ranks. The tensor given may be overwritten."""
        # Lightning's reduce writes into its argument; by default it is the mean.
        return tensor if self.data_world == 1 else self.reduce(tensor, reduce_op="sum")  # type: ignore[return-value]

    def gather(self, tensor: Tensor) -> Tensor:
        """(...) of each data-parallel rank -> (data_world, ...)."""
        return tensor[None] if self.data_world == 1 else self.all_gather(tensor)

    def assemble(self, spec: ModelSpec, shared: Shared | None = None) -> Model:
        """The model that `distribute` is then given, on the meta device. embedding: of another model, whose tables it uses."""
        return build.assemble(spec, shared)

    def distribute(self, model: Model) -> None:
        """Shard a model on the meta device as this strategy does, and give it memory; what it holds is not yet filled."""
        build.materialise(model, "cpu")

    def share(self, model: Model, companion: Model) -> None:
        """Let a companion, both placed, use tables of the trained model, which may be away before that runs."""

    @property
    def scaler(self) -> Any:
        """The scaler of losses for float16 gradients, which skips a step where they overflow; None but for 16-mixed."""
        # Lightning's MixedPrecision makes a GradScaler for 16-mixed only: bfloat16 has the exponents of float32.
        return getattr(self.precision_plugin, "scaler", None)

    def build_optimizer(self, part: OptimizerPart, parameters: Sequence[tuple[str, nn.Parameter, Role]]) -> Optimizer:
        """The optimizer that a part makes of (path, parameter, role)."""
        return part.build(parameters)

    def clip(self, optimizer: Optimizer, limit: float | None) -> Tensor | None:
        """Scale gradients to at most the norm `limit` (None: only measure); their norm before, () float32.

        None where gradients are clipped in the optimizer's own step; `norm` then tells afterwards.
        """
        # GradScaler leaves it to a fused optimizer to unscale in its step, and Lightning then unscales nothing before
        # (`_optimizer_handles_unscaling`); what is unscaled here is not unscaled there again.
        if self.scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            self.scaler.unscale_(optimizer)
        return clip_by_norm([p for group in optimizer.param_groups for p in group["params"]], limit)

    def forgo(self, optimizer: Optimizer, norm: Tensor) -> None:
        """Make no step where all gradients are 0: an optimizer with momentum or weight decay would move without a signal."""
        if not norm:
            # An optimizer leaves out what has no gradient, its state included.
            optimizer.zero_grad(set_to_none=True)

    def norm(self) -> Tensor:
        """The norm before clipping in the step that was just done. Asked only where `clip` returned None."""
        raise NotImplementedError

    # ---------------------------------------------------------------- checkpoints

    # ModelParallelStrategy and DeepSpeedStrategy say False (Lightning 2.6), and Adam would begin anew without a word: a
    # loss off by 6e-3.
    lightning_restore_optimizer = True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return {name: gathered(tensor) for name, tensor in self._trained().state_dict().items()}

    # strict is the LightningModule's; here a name too few or too many is always an error.
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        build.load(self._trained(), checkpoint["state_dict"])

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        optimizer = getattr(optimizer, "_optimizer", optimizer)  # a LightningOptimizer, as the module has it, wraps one
        state, paths = optimizer.state_dict(), self._paths(optimizer)
        return {
            "state": {paths[i]: {k: gathered(v) for k, v in value.items()} for i, value in state["state"].items()},
            "param_groups": [{**g, "params": [paths[i] for i in g["params"]]} for g in state["param_groups"]],
        }

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            paths = self._paths(optimizer)
            # torch numbers parameters in the order of the groups; by number, another order would mix states up unseen.
            at = {path: i for i, path in enumerate(paths)}
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            groups = [
                {**options, "params": list(range(first, first + len(group["params"])))}
                for first, group, options in self._options(optimizer, saved)
            ]
            # `load_state_dict` moves plain tensors to the parameters' device, but makes no DTensors of them.
            state = {
                at[path]: {k: build.like(parameters[at[path]], v) for k, v in value.items()}
                for path, value in saved["state"].items()
            }
            optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _options(self, optimizer: Optimizer, saved: Mapping[str, Any]) -> list[tuple[int, Any, dict[str, Any]]]:
        """(index of its first parameter, group, saved options of that parameter's group) of each group."""
        group_of = {path: group for group in saved["param_groups"] for path in group["params"]}
        paths, first, options = self._paths(optimizer), 0, []
        for group in optimizer.param_groups:
            options.append((first, group, dict(group_of[paths[first]])))
            first += len(group["params"])
        return options

    def _paths(self, optimizer: Optimizer) -> list[str]:
        """Paths of the optimizer's parameters, in its order."""
        path_of = {id(p): path for path, p, _ in roles.parameters(self._trained())}
        return [path_of[id(p)] for group in optimizer.param_groups for p in group["params"]]

    def _trained(self) -> nn.Module:
        """All that is trained: the model, and the companions that train."""
        assert self.lightning_module is not None
        return self.lightning_module.trained  # type: ignore[return-value]


def gathered(value: object) -> Any:
    """A sharded tensor whole and on the CPU, which all ranks must ask for; anything else as it is."""
    from torch.distributed.tensor import DTensor

    if isinstance(value, DTensor):
        with torch.no_grad():
            # An all-gather: a rank that left it out would let the others wait for ever.
            return value.full_tensor().cpu()
    return value
