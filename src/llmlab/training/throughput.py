"""Tokens that this machine trains on in a minute, measured: 20 optimizer steps of the run itself, on a model thrown away."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from llmlab.model import build, roles
from llmlab.model.trainable import Filter
from llmlab.training.clipping import clip_by_norm
from llmlab.training.companions import Companion
from llmlab.training.placement import COMPUTED, Placement

if TYPE_CHECKING:
    from llmlab.config.spec import ModelSpec
    from llmlab.slots import Objective, OptimizerPart
    from llmlab.training.recipe import Batches

STEPS, WARMUP = 20, 3  # the first ones allocate memory and, with placement.compile, compile


def tokens_in(
    minutes: float,
    spec: ModelSpec,
    objective: Objective,
    optimizer: OptimizerPart,
    batches: Batches,
    *,
    precision: str,
    placement: Placement,
    device: torch.device,
    learns: Filter = Filter(),  # noqa: B008  frozen
    companions: Mapping[str, Companion] | None = None,
    trains: Callable[[float], float],
) -> float:
    """Tokens to train on in so many minutes, measured without the first 3 of 20 steps.

    trains: of the tokens that could be trained on in all the time, those that are, as validations take some of it.

    One process measures its own share of the batch, with the whole model; `batches.cut.world` of them are taken to be as
    fast each.
    """
    model = build.assemble(spec)
    learns.apply(model)
    others = {role: companion.assemble(model) for role, companion in (companions or {}).items()}
    for each in (model, *others.values()):
        placement.apply(each)
        build.materialise(each)
        build.initialise(each, 0)
        each.to(device)
    # Dropout is a part of what a step costs.
    model.train()
    learning = [entry for each in (model, *others.values()) for entry in roles.learning(each)]
    made = optimizer.build(learning)
    cut = batches.cut
    stream = iter(batches.train(0, cut.world, 0))
    spent, since = 0.0, 0.0
    steps = min(STEPS, batches.steps)
    for step in range(steps):
        # At least the last step is measured, however short the run.
        if step == min(WARMUP, steps - 1):
            since = _now(device)
        for _ in range(cut.accumulate):
            batch = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in next(stream).items()}
            with torch.autocast(device.type, COMPUTED[precision], enabled=precision.endswith("mixed")):
                loss = objective.loss(model, batch, **others)
            loss.mean().backward()  # of this micro-batch alone: its scale is another than a run's, its cost the same
        # Always, as a run measures its norm at each step even where it clips nothing.
        clip_by_norm([p for _, p, _ in learning], 1.0)
        made.step()
        made.zero_grad()
    spent = _now(device) - since
    a_second = (steps - min(WARMUP, steps - 1)) * cut.batch_size * batches.tokens_per_sample / spent
    return trains(minutes * 60 * a_second)


def _now(device: torch.device) -> float:
    if device.type == "cuda":  # else the clock is read while kernels still run
        torch.cuda.synchronize(device)
    return time.perf_counter()
