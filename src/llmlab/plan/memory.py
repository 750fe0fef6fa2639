"""Memory of a device that training takes: weights, gradients, optimizer state, activations, what the strategy adds."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from llmlab.config.devices import SHARDED, ZERO
from llmlab.config.spec import ModelSpec
from llmlab.model.trainable import Filter
from llmlab.plan.activations import Numerics, Op, record
from llmlab.plan.depth import Deep
from llmlab.plan.fsdp import FSDP
from llmlab.plan.replay import DDP, Replay, Trained
from llmlab.plan.several import Several
from llmlab.plan.zero import Sharded3, Sharded12
from llmlab.slots import Objective
from llmlab.training.companions import Companion
from llmlab.training.placement import COMPUTED

FROM = (2, 4)  # sequences that are traced


# eq=False: hashed by identity, as keys of the caches below; its parts and dicts have no hash.
@dataclass(frozen=True, eq=False)
class Training:
    """The training to be planned, whatever the devices.

    objective, optimizer: the parts, built. length: `data.seq_len`. precision: as configured. device: where it is to
    run, which need not be where this is computed.
    """

    spec: ModelSpec
    objective: Objective
    optimizer: Any
    length: int
    precision: str = "32-true"
    device: Literal["cpu", "cuda"] = "cuda"
    separate_documents: bool = False
    learns: Filter = field(default_factory=Filter)
    companions: Mapping[str, Companion] = field(default_factory=dict)


@dataclass(frozen=True)
class Where:
    """strategy: as `strategy.name`. data_parallel: groups of devices that see different data, each of
    `tensor_parallel` devices. accumulates: an optimizer step has several micro-batches."""

    strategy: str = "single"
    data_parallel: int = 1
    tensor_parallel: int = 1
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
    """The memory of a step with `micro` sequences a forward. checkpointing: activations are computed again in the backward.

    What is traced of the model is kept, so that another strategy costs little.
    """
    replay = replayed(training, where, micro, checkpointing)
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


def most(training: Training, where: Where, capacity: int, *, checkpointing: bool = False) -> int:
    """Sequences a forward with which `capacity` bytes are never exceeded.

    At each moment what is in use is a line over the number of sequences, of which two points are known.
    """
    few, more = (np.array(replayed(training, where, n, checkpointing).history, dtype=float) for n in FROM)
    each = (more - few) / (FROM[1] - FROM[0])
    none = few - each * FROM[0]
    if none.max() > capacity:
        return 0
    # Weights, states and buckets do not grow: points in time at which they alone are there allow any number.
    grows = each > 0
    return math.floor(((capacity - none[grows]) / each[grows]).min())


def replayed(training: Training, where: Where, micro: int, checkpointing: bool) -> Replay:
    ops = traced(training, _numerics(training, where), micro, checkpointing, where.tensor_parallel)
    replay = replay_of(training, where, sum(op.kind == "read" for op in ops))
    replay.run(ops)
    return replay


def replay_of(training: Training, where: Where, forwards: int = 1) -> Replay:
    """A step under a strategy, before it is run. forwards: those that the loss makes of the model."""
    model = _model(training, where.tensor_parallel)
    numerics = _numerics(training, where)
    dtype = numerics.parameters
    if isinstance(model, Several):
        order = model.order(traced(training, numerics, FROM[0], False, where.tensor_parallel))
    else:
        # FSDP2 and ZeRO gather a layer anew for each forward that the loss makes.
        order = model.order * forwards
    parameters = model.parameters
    if isinstance(model, Several) and where.strategy not in SHARDED:
        parameters = model.held
    trained = Trained(parameters, training.optimizer, dtype, where.accumulates)
    world, gpu, offload = where.data_parallel, training.device == "cuda", where.strategy.endswith("offload")
    if where.strategy in ("single", "ddp"):
        return (DDP if where.strategy == "ddp" else Replay)(trained)
    if where.strategy.startswith("fsdp"):
        return FSDP(trained, world, order)
    if where.strategy.startswith("zero3"):
        return Sharded3(trained, world, order, gpu=gpu, offload=offload)
    return Sharded12(trained, world, int(where.strategy[4]), gpu=gpu, offload=offload)


def _numerics(training: Training, where: Where) -> Numerics:
    """DeepSpeed computes in bfloat16 whichever of the two precisions is asked for; else autocast does, or it is true."""
    computed = COMPUTED[training.precision]
    if training.precision == "bf16-true" or (where.strategy in ZERO and computed != torch.float32):
        return Numerics(computed)
    return Numerics(torch.float32, None if computed == torch.float32 else computed)


@functools.lru_cache(maxsize=8)
def _model(training: Training, tensor_parallel: int) -> Deep | Several:
    if training.companions:
        return Several(training.spec, training.companions, tensor_parallel, training.learns)
    return Deep(training.spec, tensor_parallel, training.learns)


@functools.lru_cache(maxsize=64)
def traced(training: Training, numerics: Numerics, rows: int, checkpointing: bool, tensor_parallel: int) -> list[Op]:
    """The ops of `rows` sequences. What each takes grows in proportion to them, so that any number follows from two."""
    model = _model(training, tensor_parallel)
    if rows in FROM:
        shallow = record(
            model.short,
            training.objective,
            rows=rows,
            length=training.length,
            numerics=numerics,
            checkpointing=checkpointing,
            gpu=training.device == "cuda",
            documents=training.separate_documents,
            tensor_parallel=tensor_parallel,
            frozen=model.frozen,
            companions=training.companions,
        )
        return model.lengthened(shallow)
    few, more = (traced(training, numerics, n, checkpointing, tensor_parallel) for n in FROM)
    # Sizes are interpolated op by op, which is right only where both took the same path.
    assert [op.kind for op in few] == [op.kind for op in more]
    share = (rows - FROM[0]) / (FROM[1] - FROM[0])
    return [
        a._replace(size=a.size + round((b.size - a.size) * share)) if b.size != a.size else a
        for a, b in zip(few, more, strict=True)
    ]
