"""The power of the two-sided paired t-test, how many pairs it takes, and the range of that number.

The noncentral t is T = (Z + shift) / S with Z standard normal and S^2 chi-squared over its degrees of freedom, so that
P(|T| > c) is the mean over Z of P(S < |Z + shift| / c): one integral of a smooth function. `scipy.special.nctdtr` is
NaN for large shifts (scipy 1.17: from about 40) and loses digits in the lower tail.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

POWER = 0.8
MOST_SEEDS = 200
CONFIDENCE = 0.8  # of the interval of the effect from which the range of the number comes
# Standard deviations: beyond nine lies less than 1e-18 of a normal distribution.
FAR = 9.0
# Gauss-Legendre nodes in each piece: the power then agrees to 1e-12 with scipy.stats.nct where that is sound.
NODES = 16


def seeds_needed(effect: float, level: float, most: int = MOST_SEEDS) -> int | None:
    """The smallest number of pairs with a power of 80 % if mean / sd is `effect`, None if more than `most`."""
    # Without an effect the power is the level itself, however many pairs there are.
    if power(effect, most, level) < POWER:
        return None
    # Bisection: one pair has no power, power(high) >= POWER, and between them it rises with the number of pairs.
    low, high = 1, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(effect, middle, level) >= POWER else (middle, high)
    return high


def seeds_range(effect: float, n: int, level: float, most: int = MOST_SEEDS) -> tuple[int | None, int | None]:
    """The fewest and the most pairs that are needed for an effect within its interval; None for more than `most`.

    effect: as observed in n pairs.
    """
    low, high = effect_interval(effect, n)
    largest = max(abs(low), abs(high))
    smallest = 0.0 if low <= 0 <= high else min(abs(low), abs(high))
    return seeds_needed(largest, level, most), seeds_needed(smallest, level, most)


def effect_interval(effect: float, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The confidence interval of the true mean / sd, of which n pairs have shown `effect`: those values under which
    neither so large nor so small a t is rarer than (1 - confidence) / 2 (noncentral t)."""
    if math.isinf(effect):
        return effect, effect
    t, tail, root = abs(effect) * math.sqrt(n), (1 - confidence) / 2, math.sqrt(n)
    low, high = _shift(t, n - 1, tail) / root, _shift(t, n - 1, 1 - tail) / root
    return (low, high) if effect >= 0 else (-high, -low)


def _shift(t: float, df: int, share: float) -> float:
    """The shift at which T > t has the probability `share`, which rises with it: by false position (Illinois)."""
    from scipy.special import ndtri

    # The normal approximation of T: S varies by 1 / sqrt(2 df) about 1, and T by t times that.
    spread = math.sqrt(1 + t * t / (2 * df))
    low = high = t + float(ndtri(share)) * spread  # as if T were normal
    below = above = _tails(low, t, df)[0] - share
    step = spread / 4
    while below > 0:
        high, above = low, below
        low, step = low - step, 2 * step
        below = _tails(low, t, df)[0] - share
    while above < 0:
        low, below = high, above
        high, step = high + step, 2 * step
        above = _tails(high, t, df)[0] - share
    middle, off, last = low, below, 0.0
    for _ in range(100):
        if abs(off) < 1e-11:
            break
        middle = (low * above - high * below) / (above - below)
        off = _tails(middle, t, df)[0] - share
        if off < 0:
            # The end that stays twice has its value halved (Illinois: Dowell and Jarratt 1971):
            # plain false position would keep it for ever on a curve that bends one way.
            low, below, above = middle, off, above / 2 if last < 0 else above
        else:
            high, above, below = middle, off, below / 2 if last > 0 else below
        last = off
    return middle


def power(effect: float, n: int, level: float) -> float:
    """Power of the two-sided paired t-test with n pairs, if mean / sd of the differences is `effect`."""
    from scipy.special import stdtrit

    return sum(_tails(abs(effect) * math.sqrt(n), -float(stdtrit(n - 1, level / 2)), n - 1))


def _tails(shift: float, t: float, df: int) -> tuple[float, float]:
    """(P(T > t), P(T < -t)) of the noncentral t, for t >= 0."""
    import numpy as np
    from scipy.special import chdtr, ndtr

    # T > 0 exactly where Z + shift > 0, and the integrand would divide by t.
    if t == 0:
        return float(ndtr(shift)), float(ndtr(-shift))
    # The square of (z + shift) / t overflows from 1e154 on.
    if abs(shift) > 1e100 * max(1.0, t):
        return (1.0, 0.0) if shift > 0 else (0.0, 1.0)
    # Pieces: about the normal's middle, where Z + shift changes its sign, and about where S passes 1, as steep as S is.
    width = t / math.sqrt(2 * df)
    steep = [side * t - shift + k * width for side in (-1, 1) for k in range(-8, 9, 2)]
    inner = [c for c in (*range(-6, 7, 3), -shift, *steep) if -FAR < c < FAR]
    cuts = np.array([-FAR, *sorted(inner), FAR], dtype=float)
    nodes, weights = _gauss()
    half = np.diff(cuts)[:, None] / 2
    z = (cuts[:-1, None] + half * (1 + nodes)).ravel()
    density = (half * weights).ravel() * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    mass = density * chdtr(df, df * np.square((z + shift) / t))
    # chdtr takes the square of Z + shift, so its sign says here which of the two tails a node belongs to.
    return float(mass[z > -shift].sum()), float(mass[z < -shift].sum())


@functools.cache
def _gauss() -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    # leggauss solves for the eigenvalues of a matrix at every call.
    return np.polynomial.legendre.leggauss(NODES)
