"""Strategies: Lightning's, with checkpoints that any of them reads. What a strategy needs is imported when it is chosen.

What the training module asks of a strategy, and the mixin that answers, is in `portable`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmlab.config.devices import ZERO

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from llmlab.config.spec import ModelSpec
    from llmlab.training.place import Place
    from llmlab.training.strategies.portable import ByPath


def check(cfg: DictConfig, place: Place, spec: ModelSpec) -> None:
    """UserError in a line for what the strategy can't do with this model; called before anything is written."""
    from llmlab.training import placement

    placement.check(cfg, place.accelerator)
    name = cfg.strategy.name
    if name in ZERO:
        from llmlab.training.strategies import zero

        zero.check(cfg, place, spec)
    elif name == "fsdp_tp":
        from llmlab.training.strategies import tensor_parallel

        tensor_parallel.check(cfg.strategy.tensor_parallel, spec)


def make(cfg: DictConfig, place: Place) -> ByPath:
    """The strategy that `strategy.name` says, for the devices of `place`."""
    name = cfg.strategy.name
    if name in ZERO:
        from llmlab.training.strategies import zero

        return zero.make(cfg, place)
    # NCCL knows GPUs only, gloo CPUs; tensors of the other kind are refused when they are reduced.
    backend = "nccl" if place.accelerator == "gpu" else "gloo"
    if name in ("fsdp", "fsdp_tp"):
        from llmlab.training.strategies.fsdp import FSDP

        return FSDP(place.data_parallel, place.world // place.data_parallel, backend)
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
        broadcast_buffers=False,  # they change in the same way on every rank
        gradient_as_bucket_view=True,  # gradients are pieces of the buffers that are reduced: one copy of them less
    )
