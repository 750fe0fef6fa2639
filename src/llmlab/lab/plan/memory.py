"""What training takes of a device's memory: weights, gradients, optimizer state, activations, what the strategy adds."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import torch

from llmlab.config.devices import ZERO
from llmlab.lab.plan.activations import Numerics, Op, record
from llmlab.lab.plan.fsdp import FSDP
from llmlab.lab.plan.parameters import table
from llmlab.lab.plan.replay import DDP, Replay
from llmlab.lab.plan.zero import Sharded3, Sharded12
from llmlab.model import build
from llmlab.model.layout import ModelSpec
from llmlab.model.model import Model
from llmlab.training.placement import COMPUTED


@dataclass(frozen=True, eq=False)
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
    """Bytes of the device that has most.

    total: the most that is in use at once. weights: what is trained, and the copy that is computed with where they are two.
    gradients: at the optimizer step. states: the optimizer's. strategy (buckets, gathered parameters, buffers) and
    activations (all else): when most is in use. As gradients come while activations go, the five are often more than
    that. kept: of activations, what the forward keeps for the backward, logits and loss included. host: in the CPU's
    memory beside, with offload.
    """

    total: int
    weights: int
    gradients: int
    states: int
    strategy: int
    activations: int
    kept: int
    host: int = 0


def plan(training: Training, where: Where, micro: int, *, checkpointing: bool = False) -> Memory:
    """Of `micro` sequences a forward. checkpointing: activations are computed again in the backward.

    What is traced of the model is kept, so that another strategy costs little.
    """
    replay = _replay(training, where)
    replay.run(traced(training, _numerics(training, where), micro, checkpointing, where.tensor_parallel))
    at = replay.peak
    return Memory(
        replay.highest,
        at["weights"],
        replay.gradients,
        at["states"],
        at["strategy"],
        at["activations"],
        replay.kept,
        replay.host,
    )


def _replay(training: Training, where: Where) -> Replay:
    model = build.assemble(training.spec)
    parameters = table(model)
    numerics = _numerics(training, where)
    given = (parameters, training.optimizer, numerics.parameters, where.accumulates)
    if where.strategy in ("single", "ddp"):
        return (DDP if where.strategy == "ddp" else Replay)(*given)
    if where.strategy.startswith("fsdp"):
        return FSDP(*given, where.data_parallel, _order(model))
    more = {"gpu": training.device == "cuda", "offload": where.strategy.endswith("offload")}
    if where.strategy.startswith("zero3"):
        return Sharded3(*given, where.data_parallel, order=_order(model), **more)
    return Sharded12(*given, where.data_parallel, stage=int(where.strategy[4]), **more)


def _order(model: Model) -> list[int]:
    """The layer of each executed step, counted over all stacks."""
    order: list[int] = []
    first = 0
    for stack in model.all_stacks():
        order += [first + i for i in stack.spec.execute]
        first += len(stack.layers)
    return order


def _numerics(training: Training, where: Where) -> Numerics:
    """DeepSpeed computes in bfloat16 whichever of the two precisions is asked for; else autocast does, or it is true."""
    computed = COMPUTED[training.precision]
    if training.precision == "bf16-true" or (where.strategy in ZERO and computed != torch.float32):
        return Numerics(computed)
    return Numerics(torch.float32, None if computed == torch.float32 else computed)


@functools.lru_cache(maxsize=64)
def traced(training: Training, numerics: Numerics, rows: int, checkpointing: bool, tensor_parallel: int) -> list[Op]:
    return record(
        training.spec,
        training.objective,
        rows=rows,
        length=training.length,
        numerics=numerics,
        checkpointing=checkpointing,
        gpu=training.device == "cuda",
        documents=training.separate_documents,
    )
