"""Warm-up, a plateau, and steps down."""

from llmlab.registry import register


@register("schedule", "multistep")
class MultiStep:
    """Linear warm-up, then stairs down (DeepSeek LLM: Bi et al. 2024, arXiv:2401.02954, section 2.3).

    Step s < w has the factor (s + 1) / (w + 1), a later one of n by^(number of shares a in `at` with s >= a n).

    warmup_steps: w; None: from warmup_share
    warmup_share: share of the budget that is warm-up
    at: shares of the budget at which it steps down, rising
    by: the factor of each step
    """

    telling = (
        {"warmup_steps": 0},
        {"warmup_steps": 4},
        {"warmup_steps": 45},
        {"warmup_share": 0.23},
        {"at": (0.25, 0.5, 0.73)},
        {"at": ()},
        {"at": (0.0, 0.3, 0.3, 1.0)},
        {"by": 0.5},
        {"by": 1.0},
        {"warmup_share": 0.0},
        {"warmup_share": 1.0},
    )

    def __init__(
        self,
        *,
        warmup_steps: int | None = None,
        warmup_share: float = 0.05,
        at: tuple[float, ...] = (0.8, 0.9),
        # 0.316^2 = 0.1: DeepSeek's rate is 31.6 % of the highest after 80 % of the tokens, 10 % after 90 %.
        by: float = 0.316,
    ):
        if list(at) != sorted(at) or not all(0 <= a <= 1 for a in at):
            raise ValueError(f"schedule.at={list(at)} must be shares between 0 and 1 that rise")
        if not 0 < by <= 1:
            raise ValueError(f"schedule.by={by} must be above 0 and at most 1")
        if not 0 <= warmup_share <= 1:
            raise ValueError(f"schedule.warmup_share={warmup_share} must be between 0 and 1")
        self.warmup_steps, self.warmup_share, self.at, self.by = warmup_steps, warmup_share, at, by

    def factor(self, step: int, total: int) -> float:
        warmup = round(self.warmup_share * total) if self.warmup_steps is None else self.warmup_steps
        if step < warmup:
            return (step + 1) / (warmup + 1)
        # Rounded: 0.29 * 100 is 28.999999999999996.
        return self.by ** sum(step >= round(a * total) for a in self.at)
