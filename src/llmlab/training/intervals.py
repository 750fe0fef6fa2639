"""The steps at which a run validates and saves: from counts alone, so that runs of one budget have the same on any machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from llmlab.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Of a training step's cost a token: 0.31 was measured on two cores; a backward has two products, a forward one.
FORWARD_SHARE = 1 / 3
SHARE = 0.1  # of the training's time: the most that validations take, unless the user says when they are
MOST = 10  # validations by default, however cheap
# A checkpoint costs what training on some 600 tokens does (measured on CPUs), so 20 need no bound as validations do.
SAVES = 20


class Intervals(NamedTuple):
    """Every how many optimizer steps; both are also done at the end. validation_tokens: of one pass."""

    validate_every: int
    checkpoint_every: int
    validation_tokens: int

    @classmethod
    def from_config(
        cls, train: DictConfig, held_out: int, step_tokens: int, horizon: int, record: Mapping[str, Any]
    ) -> Intervals:
        """train: the config's. record: what run.json has of a run that goes on, which keeps the steps it began with.

        held_out: tokens of one validation. step_tokens: those of an optimizer step. horizon: steps of the budget.
        """
        known = record.get("intervals")
        if known is None:  # a new run, or one whose record is from before there was such a plan
            n = MOST if record else validations(horizon * step_tokens, held_out)
            known = {"validate_every": math.ceil(horizon / n), "checkpoint_every": math.ceil(horizon / SAVES)}
        return cls(
            every("train.validate_every", train.validate_every, known["validate_every"]),
            every("train.checkpoint_every", train.checkpoint_every, known["checkpoint_every"]),
            held_out,
        )

    def validations_left(self, step: int, last: int) -> int:
        return due(step, last, self.validate_every) if self.validation_tokens else 0

    def saves_left(self, step: int, last: int) -> int:
        return due(step, last, self.checkpoint_every)


def due(step: int, last: int, every: int) -> int:
    """Multiples of `every` behind `step` up to `last`, and `last` itself."""
    return max(0, math.ceil(last / every) - step // every) if step < last else 0


def every(name: str, given: int | None, default: int) -> int:
    if given is not None and given < 1:
        raise UserError(f"{name}={given} must be at least 1")
    return max(1, default) if given is None else given


def validations(train_tokens: float, held_out: int) -> int:
    """Validations of a run by default: as many as a tenth of its training's time pays for, at most 10; the last, always."""
    if held_out == 0:
        return MOST
    return min(MOST, max(1, math.floor(SHARE * train_tokens / (held_out * FORWARD_SHARE))))


def trained(total: float, held_out: int, count: Callable[[float], float]) -> float:
    """Tokens to train on, if training and validations of `held_out` tokens are to cost what training on `total` tokens does.

    count(train tokens): their validations, more for more.
    """
    low, high = 0.5 * total, total  # at least half of the time is for training
    if low + count(low) * held_out * FORWARD_SHARE >= total:
        return low
    for _ in range(60):  # halvings: far below a token. `count` is a staircase, of which there is no closed inverse
        middle = (low + high) / 2
        if middle + count(middle) * held_out * FORWARD_SHARE <= total:
            low = middle
        else:
            high = middle
    return low
