"""The length of a run: a budget in tokens, optimizer steps, FLOPs or minutes, turned into steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from llmlab.errors import UserError

UNITS = ("tokens", "steps", "flops", "minutes")


class Horizon(NamedTuple):
    """The budget of a run: what was asked, and what that is in steps and tokens."""

    unit: str
    amount: float
    steps: int
    tokens: int


def horizon(
    budget: Mapping[str, float | None],
    tokens_per_step: int,
    flops_per_token: float | None,
    tokens_in: Callable[[float], float],
) -> Horizon:
    """The steps that cover the budget: at least as many tokens or FLOPs as were asked for.

    tokens_in(minutes): tokens that this machine trains on in so many minutes; only called for a budget in minutes.
    """
    given = {unit: amount for unit in UNITS if (amount := budget.get(unit)) is not None}
    if len(given) != 1:
        what = " and ".join(f"budget.{u}={v}" for u, v in given.items()) or "nothing is"
        raise UserError(f"a budget is one of {', '.join(f'budget.{u}' for u in UNITS)}, but {what} given")
    unit, amount = next(iter(given.items()))
    # Not `amount <= 0`, which NaN passes.
    if not amount > 0 or math.isinf(amount):
        raise UserError(f"budget.{unit}={amount} must be a number above 0")
    if unit == "steps":
        steps = int(amount)
    elif unit == "tokens":
        steps = math.ceil(amount / tokens_per_step)
    elif unit == "flops":
        assert flops_per_token is not None
        # Rounded up like tokens: equal-FLOP comparisons then differ by less than a step.
        steps = math.ceil(amount / flops_per_token / tokens_per_step)
    else:
        # One step at least: on a slow machine a minute may be less than that.
        steps = max(1, math.ceil(tokens_in(float(amount)) / tokens_per_step))
    return Horizon(unit, amount, steps, steps * tokens_per_step)
