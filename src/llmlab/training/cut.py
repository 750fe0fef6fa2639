"""A global batch, cut into micro-batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmlab.errors import UserError
from llmlab.sizes import divisors

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass(frozen=True)
class Cut:
    """A global batch of `batch_size` sequences: `micro` of them a forward, on `world` devices, `accumulate` times a step."""

    batch_size: int
    micro: int
    world: int
    accumulate: int

    @classmethod
    def of(cls, cfg: DictConfig, world: int) -> Cut:
        return cls.make(cfg.train.batch_size, cfg.train.micro_batch_size, world)

    @classmethod
    def make(cls, batch_size: int, micro: int | None, world: int) -> Cut:
        if batch_size < 1:
            raise UserError(f"train.batch_size={batch_size} must be at least 1")
        if batch_size % world:
            raise UserError(
                f"train.batch_size={batch_size} can't be shared by trainer.devices={world}; make it a multiple"
            )
        micro = batch_size // world if micro is None else micro
        if micro < 1 or batch_size % (micro * world):
            fits = divisors(batch_size // world)
            raise UserError(
                f"train.micro_batch_size={micro} does not cut train.batch_size={batch_size} on {world} "
                f"device{'s' * (world > 1)}; choose one of {', '.join(map(str, fits[-8:]))}"
            )
        return cls(batch_size, micro, world, batch_size // (micro * world))
