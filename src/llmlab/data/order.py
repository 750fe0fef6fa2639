"""The order of samples as a pure function of (seed, position): no state to save, none to drift on resume.

Each epoch visits the samples 0..n-1 in the order of a new permutation: a Feistel network (Luby & Rackoff 1988) on the
smallest 2h-bit domain that holds n, walked along its cycles until it lands below n (Black & Rogaway 2002).
"""

from __future__ import annotations

import numpy as np

from llmlab.seeds import key

# Luby & Rackoff's three make a permutation that can't be told from a random one where halves are wide; these have a few
# bits.
ROUNDS = 6


def index(seed: int, position: int, n: int) -> int:
    """The sample at `position` of the endless shuffled stream over n samples."""
    return int(indices(seed, np.array([position]), n)[0])


def indices(seed: int, positions: np.ndarray, n: int) -> np.ndarray:
    """`index` for an array of positions of any epochs: int64, same shape."""
    if n < 1:
        raise ValueError(f"the stream needs at least one sample, but n is {n}")
    epochs, places = np.divmod(np.asarray(positions, dtype=np.int64), n)
    out = np.empty_like(places)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        out[here] = _permute(places[here].astype(np.uint64), n, seed, int(epoch))
    return out


def _permute(x: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    keys = [key(seed, "order", epoch, r) for r in range(ROUNDS)]
    # The domain has at most 4 n places, so that a walk takes four steps at most on average.
    x = _feistel(x, half, keys)
    while (outside := x >= n).any():
        x[outside] = _feistel(x[outside], half, keys)
    return x.astype(np.int64)


def _feistel(x: np.ndarray, half: int, keys: list[int]) -> np.ndarray:
    # All uint64: with an int64 numpy gives float64, which rounds beyond 2^53.
    shift, low = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = x >> shift, x & low
    for k in keys:
        left, right = right, left ^ (_mix(right + np.uint64(k)) & low)
    return (left << shift) | right


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea & Flood 2014): every input bit reaches every output bit."""
    # Products of arrays wrap at 2^64 without a warning, as the constants want it.
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
