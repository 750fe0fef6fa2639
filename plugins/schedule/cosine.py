"""Warm-up, then half a cosine."""

import math

from llmlab.registry import register


@register("schedule", "cosine")
class Cosine:
    """Linear warm-up, then half a cosine down to `floor` at the end (SGDR: Loshchilov & Hutter 2016, arXiv:1608.03983).

    Step s < w has the factor (s + 1) / (w + 1).

    warmup_steps: w; None: from warmup_share
    warmup_share: share of the budget that is warm-up
    floor: the factor at the end
    """

    telling = (
        {"warmup_steps": 0},
        {"warmup_steps": 4},
        {"warmup_steps": 50},
        {"warmup_steps": 60},
        {"warmup_share": 0.23},
        {"warmup_share": 0.0},
        {"warmup_share": 1.0},
        {"floor": 0.3},
        {"floor": 0.0},
        {"floor": 1.0},
    )

    def __init__(self, *, warmup_steps: int | None = None, warmup_share: float = 0.05, floor: float = 0.1):
        if not (0 <= warmup_share <= 1 and 0 <= floor <= 1):
            raise ValueError(
                f"schedule.warmup_share and schedule.floor must be between 0 and 1, but are {warmup_share} and {floor}"
            )
        self.warmup_steps, self.warmup_share, self.floor = warmup_steps, warmup_share, floor

    def factor(self, step: int, total: int) -> float:
        warmup = round(self.warmup_share * total) if self.warmup_steps is None else self.warmup_steps
        if step < warmup:
            # As nanoGPT: the first step does not have a rate of 0, and the first after the warm-up has all of it.
            return (step + 1) / (warmup + 1)
        # Half a cosine rises again behind its end.
        if step >= total:
            return self.floor
        # warmup <= step < total here, so that the divisor is not 0.
        done = (step - warmup) / (total - warmup)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))
