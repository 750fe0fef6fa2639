"""Warm-up, then: no change, a straight line, one over a root, or a plateau and a late decay."""

import math
from typing import Literal

from llmlab.registry import register


def steps_of(steps: int | None, share: float, total: int) -> int:
    """The length of a warm-up that is given in steps, or else as a share of the budget."""
    return round(share * total) if steps is None else steps


def check(**shares: float) -> None:
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ValueError(f"schedule.{name}={value} must be between 0 and 1")


@register("schedule", "constant")
class Constant:
    """Linear warm-up, then no change (as T5 is fine-tuned: Raffel et al. 2019, arXiv:1910.10683, section 3.1.2).

    Step s < w has the factor (s + 1) / (w + 1), every later one 1.

    warmup_steps: w; None: from warmup_share
    warmup_share: share of the budget that is warm-up
    """

    telling = (
        {"warmup_steps": 0},
        {"warmup_steps": 4},
        {"warmup_share": 0.23},
        {"warmup_share": 0.0},
        {"warmup_share": 1.0},
    )

    def __init__(self, *, warmup_steps: int | None = None, warmup_share: float = 0.05):
        check(warmup_share=warmup_share)
        self.warmup_steps, self.warmup_share = warmup_steps, warmup_share

    def factor(self, step: int, total: int) -> float:
        warmup = steps_of(self.warmup_steps, self.warmup_share, total)
        return min(1.0, (step + 1) / (warmup + 1))


@register("schedule", "linear")
class Linear:
    """Linear warm-up, then a straight line to `floor` at the end (BERT: Devlin et al. 2018, arXiv:1810.04805).

    Step s < w has the factor (s + 1) / (w + 1), a later one of n has floor + (1 - floor) (n - s) / (n - w).

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
        {"floor": 0.3},
        {"floor": 1.0},
    )

    def __init__(self, *, warmup_steps: int | None = None, warmup_share: float = 0.05, floor: float = 0.0):
        check(warmup_share=warmup_share, floor=floor)
        self.warmup_steps, self.warmup_share, self.floor = warmup_steps, warmup_share, floor

    def factor(self, step: int, total: int) -> float:
        warmup = steps_of(self.warmup_steps, self.warmup_share, total)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        # A warm-up as long as the budget leaves nothing to divide by.
        return self.floor + (1 - self.floor) * max(0, total - step) / max(1, total - warmup)


@register("schedule", "inverse_sqrt")
class InverseSquareRoot:
    """Warm-up of w steps, then sqrt(w / s) with s from 1 (Vaswani et al. 2017, arXiv:1706.03762, section 5.3).

    warm "linear": s / w before that (Vaswani); "flat": 1 (T5: Raffel et al. 2019, arXiv:1910.10683, section 3.1.2). It knows
    no end: a longer budget goes on where a shorter one stopped, but for a warm-up that is a share of it.

    warmup_steps: w; None: from warmup_share
    warmup_share: share of the budget that is warm-up
    warm: what comes before
    """

    telling = (
        {"warmup_steps": 0},
        {"warmup_steps": 4},
        {"warmup_steps": 4, "warm": "flat"},
        {"warmup_share": 0.23},
    )

    def __init__(
        self,
        *,
        warmup_steps: int | None = None,
        warmup_share: float = 0.05,
        warm: Literal["linear", "flat"] = "linear",
    ):
        check(warmup_share=warmup_share)
        self.warmup_steps, self.warmup_share, self.warm = warmup_steps, warmup_share, warm

    def factor(self, step: int, total: int) -> float:
        warmup = max(1, steps_of(self.warmup_steps, self.warmup_share, total))
        if step < warmup:
            return (step + 1) / warmup if self.warm == "linear" else 1.0
        # Steps from 1: the paper's step^-0.5 has no value at 0.
        return math.sqrt(warmup / (step + 1))


@register("schedule", "wsd")
class WarmupStableDecay:
    """Linear warm-up, a plateau, and a decay late in the budget (MiniCPM: Hu et al. 2024, arXiv:2404.06395, section 4).

    The decay goes from 1 to `floor` by its progress t, floor + (1 - floor) f(t): linear 1 - t, cosine (1 + cos(pi t)) / 2,
    sqrt 1 - sqrt(t) (Hägele et al. 2024, arXiv:2405.18392); exponential: floor^t (MiniCPM).

    warmup_steps: of the warm-up; None: from warmup_share
    warmup_share: share of the budget that is warm-up
    decay_share: share of the budget in which it decays
    hold_share: share of the budget, at its end, that stays at the floor
    shape: of the decay
    floor: the factor at the end
    """

    telling = (
        {"warmup_steps": 0, "decay_share": 0.3, "hold_share": 0.1},
        {"warmup_steps": 4, "decay_share": 0.3, "shape": "linear"},
        {"warmup_steps": 45, "decay_share": 0.3, "shape": "cosine"},
        {"warmup_share": 0.23, "decay_share": 0.3, "hold_share": 0.15, "shape": "sqrt"},
        {"decay_share": 0.0, "floor": 0.2},
        {"hold_share": 0.5, "decay_share": 0.5, "floor": 0.02},
        {"decay_share": 0.3, "shape": "linear", "floor": 0.0},
    )

    def __init__(
        self,
        *,
        warmup_steps: int | None = None,
        warmup_share: float = 0.05,
        decay_share: float = 0.1,
        hold_share: float = 0.0,
        shape: Literal["linear", "cosine", "sqrt", "exponential"] = "exponential",
        floor: float = 0.1,
    ):
        check(warmup_share=warmup_share, decay_share=decay_share, hold_share=hold_share, floor=floor)
        if decay_share + hold_share > 1:
            raise ValueError(f"schedule.decay_share={decay_share} and hold_share={hold_share} must make at most 1")
        if shape == "exponential" and floor == 0:
            raise ValueError("schedule.floor=0 can't be reached exponentially; choose schedule.shape=linear")
        self.warmup_steps, self.warmup_share = warmup_steps, warmup_share
        self.decay_share, self.hold_share, self.shape, self.floor = decay_share, hold_share, shape, floor

    def factor(self, step: int, total: int) -> float:
        warmup = steps_of(self.warmup_steps, self.warmup_share, total)
        end = total - round(self.hold_share * total)
        begin = end - round(self.decay_share * total)
        # In a budget too short for both the decay goes first: a run always ends at the floor.
        if step < min(warmup, begin):
            return (step + 1) / (warmup + 1)
        if step >= end:
            return self.floor
        # decay_share=0 leaves no steps to divide by.
        t = max(0, step - begin) / max(1, end - begin)
        if self.shape == "exponential":
            return self.floor**t
        fall = {"linear": 1 - t, "cosine": (1 + math.cos(math.pi * t)) / 2, "sqrt": 1 - math.sqrt(t)}[self.shape]
        return self.floor + (1 - self.floor) * fall
