"""Notes on what a schedule never comes to within a run, read off its own factors, whatever part it is."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from llmlab.slots import Schedule

if TYPE_CHECKING:
    from omegaconf import DictConfig

MOST = 20_000  # steps that are looked at; of longer runs so many, evenly apart
NEAR = 0.99  # of the optimizer's own rate: as good as reached
LEAP = 0.25  # more than any warm-up climbs at once


def notes(schedule: Schedule, options: DictConfig, horizon: int, last_step: int) -> list[str]:
    """options: the schedule's config. horizon: steps of the budget. last_step: where trainer.max_steps ends the run."""
    # Asked step by step: a schedule of the user's own is any function of the step.
    steps = sorted({i * (horizon - 1) // max(1, min(horizon, MOST) - 1) for i in range(min(horizon, MOST))})
    factors = [schedule.factor(s, horizon) for s in steps]
    highest = max(factors)
    top = steps[next(i for i, f in enumerate(factors) if f >= NEAR * highest)] + 1  # the first step at that rate
    reached = max(f for s, f in zip(steps, factors, strict=True) if s < last_step)
    texts = []
    if highest < NEAR:
        texts.append(
            f"the learning rate never exceeds {highest:.2g} of optimizer.lr in {_steps(horizon)}: {_fix(options, horizon)}"
        )
    elif last_step < horizon and reached < NEAR:
        texts.append(
            f"trainer.max_steps={last_step} ends the run before the learning rate exceeds {reached:.2g} of optimizer.lr: "
            f"its highest comes at step {top:,}; budget.steps={last_step} gives the run a schedule of its own length"
        )
    elif horizon <= MOST and (leap := _leap(factors)):
        texts.append(f"{leap}: {_fix(options, horizon)}")
    elif top - 1 > horizon / 2:
        texts.append(
            f"the learning rate reaches optimizer.lr at step {top:,} of {horizon:,} only: {_fix(options, horizon)}"
        )
    if horizon <= MOST:
        texts += _fall(schedule, factors, horizon)
    return [f"schedule={options['_part_']}: {line}" for line in texts]


def _fix(options: DictConfig, horizon: int) -> str:
    typed, share = options.get("warmup_steps"), options.get("warmup_share")
    if typed is not None:
        if share is None:
            return f"lower schedule.warmup_steps (it is {typed:,}), or train for longer"
        usual = f"leave it out for {round(share * horizon):,}, schedule.warmup_share={share:g} of them"
        return f"lower schedule.warmup_steps (it is {typed:,}; {usual}), or train for longer"
    if share is not None:
        return f"lower schedule.warmup_share (it is {share:g})"
    return "choose a shorter warm-up, or train for longer"


def _leap(factors: list[float]) -> str | None:
    """A warm-up that something else cuts off: a decay that begins before it ends."""
    for step, (before, after) in enumerate(pairwise(factors), 2):
        if after - before > max(LEAP, 1.5 * factors[0]):
            return (
                f"the learning rate leaps from {before:.2g} to {after:.2g} of optimizer.lr at step {step:,}, as the decay "
                "begins before the warm-up ends"
            )
    return None


def _fall(schedule: Schedule, factors: list[float], horizon: int) -> list[str]:
    """A plateau up to the end and a fall just behind it."""
    after = schedule.factor(horizon, horizon)
    if horizon < 3 or factors[-1] != factors[-2] or after >= NEAR * factors[-1]:
        return []
    return [
        f"its fall from {factors[-1]:.2g} to {after:.2g} of optimizer.lr would come behind the last of {_steps(horizon)}, "
        "so it has no effect; let it begin earlier, or train for longer"
    ]


def _steps(n: int) -> str:
    return f"{n:,} step{'s' * (n != 1)}"
