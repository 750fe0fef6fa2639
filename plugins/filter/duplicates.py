"""A filter of exact duplicates."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from llmlab.registry import register

RECENT = 1 << 16  # hashes that are collected in a set before they are merged into the sorted array


@register("filter", "duplicates")
class Duplicates:
    """Drops all but the first of equal documents, by a hash of 128 bits (Lee et al. 2022, arXiv:2107.06499).

    The options say which differences of white space and case the hash ignores; documents themselves are not changed. A
    document takes 16 bytes of memory.

    ignore_space: runs of white space count as one space, and those at the ends as none
    ignore_case: capitals and small letters count as the same
    """

    telling = ({"ignore_space": False, "ignore_case": True},)

    def __init__(self, *, ignore_space: bool = True, ignore_case: bool = False):
        self.ignore_space, self.ignore_case = ignore_space, ignore_case
        # A set takes 100 bytes for each hash, so only recent ones are in a set, the others in a sorted array.
        self._sorted = np.empty(0, dtype="S16")
        self._recent: set[bytes] = set()

    def measure(self, texts: Sequence[str]) -> list[bytes]:
        return [hashlib.blake2b(self._normalised(t).encode("utf-8"), digest_size=16).digest() for t in texts]

    def reason(self, value: bytes) -> str | None:
        if value in self._recent or self._in_sorted(value):
            return "the same as one before"
        self._recent.add(value)
        if len(self._recent) > max(RECENT, len(self._sorted) // 16):
            recent = np.array(sorted(self._recent), dtype="S16")
            self._sorted = np.insert(self._sorted, np.searchsorted(self._sorted, recent), recent)
            self._recent.clear()
        return None

    def _normalised(self, text: str) -> str:
        if self.ignore_space:
            text = " ".join(text.split())
        return text.casefold() if self.ignore_case else text

    def _in_sorted(self, value: bytes) -> bool:
        at = int(np.searchsorted(self._sorted, np.bytes_(value)))
        # NumPy strips zeros at the end of a value; hashes of one length stay distinct.
        return at < len(self._sorted) and bool(self._sorted[at] == value.rstrip(b"\0"))
