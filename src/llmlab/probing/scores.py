"""Splits of a labelled set, and the mean and interval of what was measured on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.95


class Split(NamedTuple):
    """Indices of the texts that are learnt from, and of those that are scored, each in ascending order."""

    train: np.ndarray
    test: np.ndarray


class Interval(NamedTuple):
    """Mean and half the width of its 95 % interval, None for one value."""

    mean: float
    half: float | None


def split(classes: np.ndarray, share: float, seed: int) -> Split:
    """A stratified split: `share` of each class is held out, at most all but one text of it.

    It follows from the classes, the share and the seed alone, so that all models are scored on the same texts.
    """
    rng = np.random.default_rng(seed)
    held = []
    left = 0.0
    for c in np.unique(classes):
        members = rng.permutation(np.flatnonzero(classes == c))
        # What rounding leaves goes to the next class, so that the parts are of the asked sizes together.
        wanted = share * len(members) + left
        n = min(int(wanted + 0.5), len(members) - 1)
        left = wanted - n
        held.append(members[:n])
    test = np.sort(np.concatenate(held))
    return Split(np.setdiff1d(np.arange(len(classes)), test), test)


def interval(values: Sequence[float], part: Split) -> Interval:
    """Over splits of one labelled set: Student's t with the variance that Nadeau and Bengio correct (2003, "Inference for
    the Generalization Error", Machine Learning 52): s^2 (1 / n + test / train).

    The splits share texts, so that s^2 / n alone is too small.
    """
    # Imported here: scipy.special takes 0.16 s.
    from scipy.special import stdtrit

    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return Interval(mean, None)
    variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1)
    factor = 1 / n + len(part.test) / len(part.train)
    return Interval(mean, float(stdtrit(n - 1, (1 + LEVEL) / 2)) * math.sqrt(variance * factor))


def difference(ours: Sequence[float], theirs: Sequence[float], part: Split) -> Interval:
    """The interval of ours - theirs, split by split."""
    return interval([a - b for a, b in zip(ours, theirs, strict=True)], part)
