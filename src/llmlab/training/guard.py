"""When a run is beyond help: a loss or gradient that is no number, or a loss that has exploded."""

from __future__ import annotations

import math
from collections.abc import Mapping

from llmlab.errors import UserError
from llmlab.training.step_metrics import Summary

FACTOR, FLOOR = 3.0, 1.0
# GradScaler begins at 2^16 and halves the scale at each overflow: after ten in a row it is 64, which no sound gradient
# overflows (loss scaling: Micikevicius et al. 2018, arXiv:1710.03740).
SKIPS = 10


class Diverged(Exception):
    """Training has failed at `step`."""

    def __init__(self, step: int, what: str):
        super().__init__(f"step {step}: {what}")
        self.step, self.what = step, what


def check(
    summary: Summary, last_step: int, initial: float | None, *, exploding: bool = True, scaled: bool = False
) -> float:
    """Diverged if a step's loss or gradient norm is not finite, or the mean loss of these steps exceeds 3 times the first
    step's (taken as 1 where it was less, for a model that starts well). Returns the loss of the run's first step.

    A model that knows nothing has the loss ln V; only one whose weights blow up is three times as wrong. A lone bad batch,
    averaged with its neighbours, does not trip it; exploding=False leaves this out, for where the steps are few.
    scaled: losses are scaled for float16, so a step whose gradients overflow is skipped and the scale lowered; only where
    SKIPS or more steps, and all, were skipped has it diverged.
    """
    first = last_step - len(summary.losses) + 1
    for i, (loss, norm) in enumerate(zip(summary.losses, summary.norms, strict=True)):
        if not math.isfinite(loss):
            raise Diverged(first + i, f"the loss is {loss}")
        skipped = scaled and (len(summary.norms) < SKIPS or any(map(math.isfinite, summary.norms)))
        if not math.isfinite(norm) and not skipped:
            raise Diverged(first + i, f"the gradient norm is {norm} (the loss is {loss:.4g})")
    initial = summary.losses[0] if initial is None else initial
    if exploding and summary.loss > FACTOR * max(initial, FLOOR):
        raise Diverged(
            last_step, f"the loss has exploded to {summary.loss:.4g}; it was {initial:.4g} at the first step"
        )
    return initial


def within(summary: Summary, last_step: int, bounds: Mapping[str, float]) -> None:
    """Diverged if a mean of these steps is above the bound that the user has set for its name; UserError for one that this
    objective does not show."""
    for name, bound in bounds.items():
        value = summary.loss if name == "loss" else summary.logs.get(name)
        if value is None:
            shown = ", ".join(["loss", *summary.logs])
            raise UserError(
                f"train.stop_{name}={bound:g}: there is no {name} in this run, which shows {shown}; leave it out"
            )
        # Not `value > bound`: of a NaN both are false.
        if not value <= bound:
            raise Diverged(last_step, f"{name} is {value:.4g}, above train.stop_{name}={bound:g}")
