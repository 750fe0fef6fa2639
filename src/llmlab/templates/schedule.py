"""A schedule of your own."""

import numpy as np

from llmlab.registry import register
from llmlab.twins import Given, twin


@register("schedule", "my_schedule")
class MySchedule:
    """Linear warm-up, then a power of what is left (DeepLab: Chen et al. 2016, arXiv:1606.00915), down to `floor`.

    `factor` is what the learning rate is multiplied by; steps count from 0, `total` is the budget in steps.
    """

    telling = ({"warmup_share": 0.3}, {"power": 2.0}, {"floor": 0.2})

    def __init__(
        self,
        *,
        warmup_share: float = 0.05,  # share of the budget that is warm-up
        power: float = 1.0,  # 1: a straight line
        floor: float = 0.1,  # the factor at the end
    ):
        if not (0 <= warmup_share <= 1 and 0 <= floor <= 1 and power > 0):
            raise ValueError(
                f"schedule.warmup_share={warmup_share} and schedule.floor={floor} must be between 0 and 1, "
                f"schedule.power={power} more than 0"
            )
        self.warmup_share, self.power, self.floor = warmup_share, power, floor

    def factor(self, step: int, total: int) -> float:
        warmup = round(self.warmup_share * total)
        if step < warmup:
            # The first step has a rate above 0, or it would be for nothing.
            return (step + 1) / (warmup + 1)
        # A run that goes on behind its budget; a power of a negative number would be complex.
        if step >= total:
            return self.floor
        left = 1 - (step - warmup) / (total - warmup)
        return self.floor + (1 - self.floor) * left**self.power


# Not of the class: `llmlab check` holds the part to what this says, at every setting of its options. What a twin is given, and
# which outputs it may give, is listed in the docstring of llmlab.check.twins.observers.schedule.
@twin("schedule", "my_schedule", source="Chen et al. 2016, policy poly, after a warm-up")
def definition(given: Given) -> dict[str, np.ndarray]:
    floor, power, share = (given.options[key] for key in ("floor", "power", "warmup_share"))

    def factors(steps: np.ndarray, total: int) -> np.ndarray:
        warmup = round(share * total)
        done = np.clip((steps - warmup) / max(1, total - warmup), 0, 1)
        return np.where(steps < warmup, (steps + 1) / (warmup + 1), floor + (1 - floor) * (1 - done) ** power)

    totals = {"of_50": 50, "late": 50, "of_7": 7}
    return {name: factors(given.inputs[name], total) for name, total in totals.items()}
