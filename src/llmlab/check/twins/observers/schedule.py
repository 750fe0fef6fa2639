"""Observer of schedules. Inputs: the numbers of steps of runs of 50, 50, 7 and 1 steps, as `of_50`, `late`, `of_7` and `of_1`.

`late` has the last steps of 50 and some beyond the end. Outputs: the factor of each step, under the same names.
"""

from __future__ import annotations

import numpy as np

from llmlab.check.twins.observers.observed import Observed, build, options_of, sizes_of
from llmlab.check.twins.settings import Setting
from llmlab.twins import Given

STEPS = {"of_50": (range(30), 50), "late": (range(30, 56), 50), "of_7": (range(9), 7), "of_1": (range(3), 1)}


def observe(setting: Setting) -> Observed:
    schedule = build(setting)
    inputs = {name: np.array(steps) for name, (steps, _) in STEPS.items()}
    factors = {name: np.array([schedule.factor(s, total) for s in steps]) for name, (steps, total) in STEPS.items()}
    return Observed(Given(options_of(setting), sizes_of(setting), inputs, {}), factors)
