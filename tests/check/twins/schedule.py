"""Twins of schedules, from their papers. A warm-up of w steps is min(1, (s + 1) / (w + 1)) unless a paper says otherwise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llmlab.check.twins.observers.schedule import STEPS
from llmlab.twins import Given, twin
from twins import Settings

WARMUP = [({}, {"warmup_share": share}) for share in (-0.1, 1.1)]
FLOOR = [({}, {"floor": floor}) for floor in (-0.1, 1.1)]
REFUSED: Settings = {
    "constant": WARMUP,
    "linear": [*WARMUP, *FLOOR],
    "cosine": [*WARMUP, *FLOOR],
    "inverse_sqrt": WARMUP,
    "wsd": [
        *WARMUP,
        *FLOOR,
        ({}, {"decay_share": -0.1}),
        ({}, {"decay_share": 1.1}),
        ({}, {"hold_share": -0.1}),
        ({}, {"hold_share": 1.1, "decay_share": 0.0}),
        ({}, {"decay_share": 0.6, "hold_share": 0.5}),
        ({}, {"floor": 0.0}),
    ],
    "multistep": [
        *WARMUP,
        *(({}, {"at": at}) for at in ([0.5, 0.25], [-0.1, 0.5], [0.5, 1.1])),
        *(({}, {"by": by}) for by in (0.0, 1.1)),
    ],
}
TOTALS = {name: total for name, (_, total) in STEPS.items()}
After = Callable[[np.ndarray, int, int], np.ndarray]


def length(given: Given, total: int) -> int:
    """The warm-up in steps; half a step goes to the even side, as np.rint has it."""
    steps = given.options["warmup_steps"]
    return int(np.rint(given.options["warmup_share"] * total)) if steps is None else steps


def warmed(given: Given, after: After) -> dict[str, np.ndarray]:
    """A linear warm-up, then `after(steps, warm-up, total)`."""
    made = {}
    for name, steps in given.inputs.items():
        total = TOTALS[name]
        w = length(given, total)
        made[name] = np.where(steps < w, (steps + 1) / (w + 1), after(steps, w, total))
    return made


def progress(steps: np.ndarray, begin: int, end: int) -> np.ndarray:
    """Numbers from 0 at `begin` to 1 at `end`, and 1 behind it."""
    return np.where(steps >= end, 1.0, np.clip((steps - begin) / max(end - begin, 1), 0.0, 1.0))


@twin(
    "schedule", "cosine", source="Loshchilov and Hutter 2016, equation 5, one period; warm-up as in nanoGPT's train.py"
)
def cosine(given: Given) -> dict[str, np.ndarray]:
    low = given.options["floor"]
    return warmed(given, lambda s, w, n: low + (1 - low) / 2 * (1 + np.cos(np.pi * progress(s, w, n))))


@twin("schedule", "constant", source="Raffel et al. 2019, section 3.1.2 (fine-tuning)")
def constant(given: Given) -> dict[str, np.ndarray]:
    return warmed(given, lambda s, w, n: np.ones(len(s)))


@twin("schedule", "linear", source="Devlin et al. 2018, appendix A.2: linear decay")
def linear(given: Given) -> dict[str, np.ndarray]:
    low = given.options["floor"]
    return warmed(given, lambda s, w, n: 1 - (1 - low) * progress(s, w, n))


@twin("schedule", "inverse_sqrt", source="Vaswani et al. 2017, equation 3; flat: Raffel et al. 2019, section 3.1.2")
def inverse_sqrt(given: Given) -> dict[str, np.ndarray]:
    made = {}
    for name, steps in given.inputs.items():
        s, w = steps + 1.0, float(max(length(given, TOTALS[name]), 1))
        if given.options["warm"] == "flat":
            made[name] = np.maximum(s, w) ** -0.5 / w**-0.5
        else:
            made[name] = np.minimum(s**-0.5, s * w**-1.5) / w**-0.5
    return made


@twin(
    "schedule", "wsd", source="Hu et al. 2024, section 4.1; the decay's shapes: Hägele et al. 2024, equations 1 and 2"
)
def wsd(given: Given) -> dict[str, np.ndarray]:
    o, made = given.options, {}
    low = o["floor"]
    for name, steps in given.inputs.items():
        n = TOTALS[name]
        w, end = length(given, n), n - int(np.rint(o["hold_share"] * n))
        begin = end - int(np.rint(o["decay_share"] * n))
        t = progress(steps, begin, end)
        decayed = {
            "linear": 1 - (1 - low) * t,
            "cosine": low + (1 - low) * np.cos(np.pi * t / 2) ** 2,
            "sqrt": 1 - (1 - low) * np.sqrt(t),
            "exponential": np.exp(t * np.log(low)) if low else t,
        }[o["shape"]]
        made[name] = np.where(steps < min(w, begin), (steps + 1) / (w + 1), decayed)
    return made


@twin("schedule", "multistep", source="Bi et al. 2024, section 2.3")
def multistep(given: Given) -> dict[str, np.ndarray]:
    def stairs(steps: np.ndarray, w: int, n: int) -> np.ndarray:
        factor = np.ones(len(steps))
        for share in given.options["at"]:
            factor[steps >= np.rint(share * n)] *= given.options["by"]
        return factor

    return warmed(given, stairs)
