"""One seed for each thing that is random."""

from __future__ import annotations

import hashlib


def key(*parts: object) -> int:
    """A 63-bit integer from the sha256 of `parts` (plain values): a pure function of them."""
    # Not hash(), which is salted in each process. Plain values: NumPy 2 writes np.int64(3) where NumPy 1 wrote 3.
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1
