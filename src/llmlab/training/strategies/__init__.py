"""Strategies: Lightning's, with checkpoints that any of them reads. What a strategy needs is imported when it is chosen.

What the training module asks of a strategy, and the mixin that answers, is in `portable`.

A strategy of your own is a file here and a line in `make` below; its name goes into `STRATEGIES` of
`llmlab.config.devices`, its choice into conf/strategy/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmlab.config.devices import ZERO

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from llmlab.config.spec import ModelSpec
    from llmlab.training.devices import Devices
    from llmlab.training.strategies.portable import ByPath


def check(cfg: DictConfig, devices: Devices, spec: ModelSpec) -> None:
    """UserError in a line for what the strategy can't do with this model; called before anything is written."""
    from llmlab.training import placement

    placement.check(cfg, devices.accelerator)
    name = cfg.strategy.name
    if name in ZERO:
        from llmlab.training.strategies import zero

        zero.check(cfg, devices, spec)
    elif name == "fsdp_tp":
        from llmlab.training.strategies import tensor_parallel

        tensor_parallel.check(cfg.strategy.tensor_parallel, spec)


def make(cfg: DictConfig, devices: Devices) -> ByPath:
    """The strategy that `strategy.name` says, for the devices of `devices`."""
    name = cfg.strategy.name
    if name in ZERO:
        from llmlab.training.strategies import zero

        return zero.make(cfg, devices)
    # NCCL knows GPUs only, gloo CPUs; tensors of the other kind are refused when they are reduced.
    backend = "nccl" if devices.accelerator == "gpu" else "gloo"
    if name in ("fsdp", "fsdp_tp"):
        from llmlab.training.strategies.fsdp import FSDP

        return FSDP(devices.data_parallel, devices.world // devices.data_parallel, backend)
    from llmlab.training.strategies.portable import SafeCheckpointIO
    from llmlab.training.strategies.replicated import DDP, Single

    if name == "single":
        import torch

        return Single(
            torch.device("cuda", 0) if backend == "nccl" else torch.device("cpu"), checkpoint_io=SafeCheckpointIO()
        )
    assert name == "ddp"
    return DDP(
        process_group_backend=backend,
        checkpoint_io=SafeCheckpointIO(),
        # DDP would broadcast the first rank's buffers before every forward; they change alike on every rank.
        broadcast_buffers=False,
        # Gradients are then views of the buckets that are reduced, which saves a copy of them.
        gradient_as_bucket_view=True,
    )
