"""95 % intervals of means: Student's t, and Wilson's score interval for what lies between 0 and 1.

Only `scipy.special` is imported: `scipy.stats` takes a second to load.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

ALPHA = 0.05


class Interval(NamedTuple):
    """A mean with the ends of its 95 % interval, None where one value tells nothing of them."""

    mean: float
    low: float | None
    high: float | None


def mean(values: Sequence[float]) -> float:
    # `sum` rounds at every step, so that the order of the seeds would show in the last digit; fsum rounds once.
    return math.fsum(values) / len(values)


def sd(values: Sequence[float]) -> float | None:
    """The sample standard deviation, None for one value or none."""
    if len(values) < 2:
        return None
    centre = mean(values)
    # hypot scales before it squares: the squares of 1e-170 would be 0.
    return math.hypot(*(v - centre for v in values)) / math.sqrt(len(values) - 1)


def half_width(values: Sequence[float], level: float = ALPHA) -> float | None:
    """Half of the 1 - level interval of the mean (Student's t, n - 1 degrees of freedom), None for one value."""
    # Imported here: scipy.special takes 0.16 s with numpy, and variants of one seed need none of it.
    from scipy.special import stdtrit

    spread, n = sd(values), len(values)
    return None if spread is None else float(stdtrit(n - 1, 1 - level / 2)) * spread / math.sqrt(n)


def student(values: Sequence[float]) -> Interval:
    """Student's interval of the mean."""
    centre, half = mean(values), half_width(values)
    return Interval(centre, None, None) if half is None else Interval(centre, centre - half, centre + half)


def wilson(share: float, n: float, level: float = ALPHA) -> Interval:
    """Wilson's score interval (1927) of a share of n; unlike Student's it has a width where all n are alike."""
    z = NormalDist().inv_cdf(1 - level / 2)
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def shares(values: Sequence[float], most: int = 1) -> Interval:
    """Wilson's interval of the mean of values between 0 and 1, each itself a mean of `most` draws at most.

    The effective sample size (Kish 1965) is that of which a share would have the variance that the values show: between their
    number, if all draws of a value are alike, and `most` times as many, if they are independent. It is less where few values
    show the variance, by the square of the normal's quantile over Student's (Korn and Graubard 1998), and one value shows none.
    """
    # Imported here, as in half_width.
    from scipy.special import stdtrit

    centre, spread = mean(values), sd(values)
    # Rounding may take a mean of ones beyond 1, of which there is no root.
    centre, n = min(1.0, max(0.0, centre)), len(values)
    if spread:
        few = NormalDist().inv_cdf(1 - ALPHA / 2) / float(stdtrit(n - 1, 1 - ALPHA / 2))
        effective = centre * (1 - centre) * n / spread**2 * few**2
    else:
        effective = n * most if 0 < centre < 1 and n > 1 else n
    return wilson(centre, min(max(effective, n), n * most))
