"""The statistics of a report: Student's t over differences paired by seed, Holm's correction, and how many seeds it takes.

Only `scipy.special` is imported: `scipy.stats` takes a second to load.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmlab.intervals import half_width, mean, sd
from llmlab.report.power import MOST_SEEDS, seeds_needed, seeds_range

__all__ = [
    "ALPHA",
    "MOST_SEEDS",
    "Comparison",
    "compare",
    "half_width",
    "holm",
    "mean",
    "p_value",
    "sd",
    "seeds_needed",
]

ALPHA = 0.05  # the rate of false findings over all variants of a report


@dataclass(frozen=True)
class Comparison:
    """A variant against the baseline, over the seeds that both have.

    mean: of the differences variant - baseline; sd: theirs, None for one seed. low, high: the interval of the mean at
    1 - level, None for one seed. p: two-sided, uncorrected; adjusted: Holm's. needed: seeds for 80 % power at `level`
    if the effect and the sd are as observed, None where that is more than 200 or can't be said. needed_low, needed_high:
    the same at the ends of the 80 % confidence interval of the effect, None alike.
    """

    seeds: list[int]
    only_here: list[int]
    only_baseline: list[int]
    differences: list[float]
    mean: float | None = None
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    level: float | None = None
    p: float | None = None
    adjusted: float | None = None
    needed: int | None = None
    needed_low: int | None = None
    needed_high: int | None = None

    @property
    def n(self) -> int:
        return len(self.seeds)

    @property
    def identical(self) -> bool:
        return self.n > 0 and not any(self.differences)

    @property
    def significant(self) -> bool:
        return self.adjusted is not None and self.adjusted <= ALPHA


def p_value(differences: Sequence[float]) -> float | None:
    """Two-sided p of a mean of 0 (the paired t-test), None for one value. All equal: 1 if they are 0, else 0."""
    from scipy.special import stdtr

    spread, n = sd(differences), len(differences)
    if spread is None:
        return None
    if spread == 0:
        return 1.0 if mean(differences) == 0 else 0.0
    # The lower tail twice: 1 - stdtr(t) of the upper one is 0 for every p below 1e-16.
    return 2 * float(stdtr(n - 1, -abs(mean(differences)) * math.sqrt(n) / spread))


def holm(p: Sequence[float], alpha: float = ALPHA) -> tuple[list[float], list[float]]:
    """(adjusted p, the level at which each is tested) of Holm's step-down procedure (1979).

    With m tests the k-th smallest p is tested at alpha / (m - k + 1); the first that fails stops the procedure, and it
    and all larger ones have that level. So p <= level exactly where adjusted p <= alpha.
    """
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, levels = [0.0] * len(p), [0.0] * len(p)
    highest, level, going = 0.0, alpha, True
    for rank, i in enumerate(order):
        left = len(p) - rank
        # Adjusted p never fall along the order, as p.adjust of R has it: a larger p can't be the surer finding.
        highest = max(highest, min(1.0, left * p[i]))
        if going:
            level, going = alpha / left, p[i] <= alpha / left
        adjusted[i], levels[i] = highest, level
    return adjusted, levels


def compare(variants: Mapping[str, Mapping[int, float]], baseline: Mapping[int, float]) -> dict[str, Comparison]:
    """Each variant ({seed: value}) against the baseline, corrected over all of them together."""
    pairs = {}
    for name, values in variants.items():
        seeds = sorted(values.keys() & baseline.keys())
        differences = [values[s] - baseline[s] for s in seeds]
        pairs[name] = (seeds, differences, sorted(values.keys() - baseline), sorted(baseline.keys() - values))
    # A variant of one seed is not tested, so Holm's m does not count it.
    p = {name: value for name, (_, d, _, _) in pairs.items() if (value := p_value(d)) is not None}
    corrected = dict(zip(p, zip(*holm(list(p.values())), strict=True), strict=True))
    found = {}
    for name, (seeds, differences, here, there) in pairs.items():
        if name not in corrected:
            centre = mean(differences) if differences else None
            found[name] = Comparison(seeds, here, there, differences, centre)
            continue
        adjusted, level = corrected[name]
        centre, spread, half = mean(differences), sd(differences), half_width(differences, level)
        assert spread is not None and half is not None
        # Equal differences have a spread of 0: their effect over it is infinite and takes no more seeds.
        more = _needed(centre / spread, len(seeds), level) if spread and adjusted > ALPHA else (None, None, None)
        found[name] = Comparison(
            seeds, here, there, differences, centre, spread, centre - half, centre + half, level, p[name], adjusted,
            *more,
        )  # fmt: skip
    return found


def _needed(effect: float, n: int, level: float) -> tuple[int | None, int | None, int | None]:
    """Pairs needed for an effect that n pairs were too few for, with the ends of their range: more than n."""
    numbers = (seeds_needed(effect, level), *seeds_range(effect, n, level))
    at, low, high = (None if k is None else max(k, n + 1) for k in numbers)
    return at, low, high
