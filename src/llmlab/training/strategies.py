"""Where a run computes: Lightning strategies whose checkpoints are ours, with optimizer state keyed by parameter path."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch.optim import Optimizer

from llmlab.model import roles
from llmlab.training import checkpoint


class SafeCheckpointIO(CheckpointIO):
    """Lightning's door to `llmlab.training.checkpoint`."""

    def save_checkpoint(self, checkpoint_: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        state = dict(checkpoint_)
        checkpoint.write(Path(path), state.pop("state_dict"), state)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        weights, state = checkpoint.read(Path(path))
        return {**state, "state_dict": weights}

    def remove_checkpoint(self, path: Any) -> None:
        shutil.rmtree(path, ignore_errors=True)


class ByPath(Strategy):
    """Mixin: a checkpoint holds the model's own names, and the optimizer's state by parameter path.

    So a checkpoint does not depend on the order in which an optimizer part lists its parameters.
    """

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return self._trained().state_dict()

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        self._trained().load_state_dict(checkpoint["state_dict"], strict=strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        state, paths = optimizer.state_dict(), self._paths(optimizer)
        return {
            "state": {paths[i]: value for i, value in state["state"].items()},
            "param_groups": [{**g, "params": [paths[i] for i in g["params"]]} for g in state["param_groups"]],
        }

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            paths = self._paths(optimizer)
            at = {path: i for i, path in enumerate(paths)}
            groups = [
                {**options, "params": list(range(first, first + len(group["params"])))}
                for first, group, options in self._options(optimizer, saved)
            ]
            state = {at[path]: value for path, value in saved["state"].items()}
            optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _options(self, optimizer: Optimizer, saved: Mapping[str, Any]) -> list[tuple[int, Any, dict[str, Any]]]:
        """(index of its first parameter, group, saved options of that parameter's group) of each group."""
        of = {path: group for group in saved["param_groups"] for path in group["params"]}
        paths, first, found = self._paths(optimizer), 0, []
        for group in optimizer.param_groups:
            found.append((first, group, dict(of[paths[first]])))
            first += len(group["params"])
        return found

    def _paths(self, optimizer: Optimizer) -> list[str]:
        """Paths of the optimizer's parameters, in its order."""
        path_of = {id(p): path for path, p, _ in roles.parameters(self._trained())}
        return [path_of[id(p)] for group in optimizer.param_groups for p in group["params"]]

    def _trained(self) -> Any:
        assert self.lightning_module is not None
        return self.lightning_module.model


class Single(ByPath, SingleDeviceStrategy):
    """One device."""


class DDP(ByPath, DDPStrategy):
    """Every rank holds the model; gradients are averaged (Li et al. 2020, arXiv:2006.15704)."""


def make(name: str, accelerator: str) -> Strategy:
    """strategy=single or ddp. Buffers change in the same way on every rank, so they are not broadcast."""
    io = SafeCheckpointIO()
    if name == "single":
        import torch

        device = torch.device("cuda", 0) if accelerator == "gpu" else torch.device("cpu")
        return Single(device, checkpoint_io=io)
    backend = "nccl" if accelerator == "gpu" else "gloo"
    return DDP(process_group_backend=backend, checkpoint_io=io, broadcast_buffers=False, gradient_as_bucket_view=True)
