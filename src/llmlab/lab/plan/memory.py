"""What training takes of a device's memory: weights, gradients, optimizer state, activations, what the strategy adds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from llmlab.model.layout import ModelSpec


@dataclass(frozen=True)
class Training:
    """What is trained, whatever the devices.

    objective, optimizer: the parts, built. length: `data.seq_len`. precision: as configured. device: where it is to
    run, which need not be where this is computed.
    """

    spec: ModelSpec
    objective: Any
    optimizer: Any
    length: int
    precision: str = "32-true"
    device: Literal["cpu", "cuda"] = "cuda"
    separate_documents: bool = False


@dataclass(frozen=True)
class Where:
    """strategy: as `strategy.name`. data_parallel: groups of devices that see different data, each of
    `tensor_parallel` devices. clip: gradient norm. accumulates: an optimizer step has several micro-batches."""

    strategy: str = "single"
    data_parallel: int = 1
    tensor_parallel: int = 1
    clip: float | None = 1.0
    accumulates: bool = False


@dataclass(frozen=True)
class Memory:
    """Bytes of the device that has most, when most are in use. The five parts add up to `total`.

    weights: what is trained, and the copy that is computed with where they are two. gradients and states: at the
    optimizer step. strategy: buckets, gathered parameters, buffers. activations: all else, when most is in use.
    kept: of it, what the forward keeps for the backward, logits and loss included. host: in the CPU's memory beside,
    with offload.
    """

    weights: int
    gradients: int
    states: int
    strategy: int
    activations: int
    kept: int
    host: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.states + self.strategy + self.activations


def plan(training: Training, where: Where, micro: int, *, checkpointing: bool = False) -> Memory:
    """Of `micro` sequences a forward. checkpointing: activations are computed again in the backward.

    What is traced of the model is kept, so that more strategies and sizes of micro-batch cost little.
    """
    raise NotImplementedError
