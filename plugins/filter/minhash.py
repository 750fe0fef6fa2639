"""A filter of near-duplicates: MinHash signatures in bands."""

from __future__ import annotations

import hashlib
import itertools
import re
import tempfile
from collections.abc import Sequence

import numpy as np

from llmlab.registry import register

RECENT = 1 << 16  # keys that are collected in a set before they are sorted into an array
IN_MEMORY = 1 << 23  # keys of the sorted array, 64 MB, that are then written to a temporary file
KNOWN = 1 << 17  # words whose hashes a process keeps at most
AT_ONCE = 1 << 15  # shingles that are hashed together, for a table of all hashes that stays in the cache
EDGES = re.compile(r"^[.,;:!?\"'()\[\]\u201c\u201d\u2018\u2019]+|[.,;:!?\"'()\[\]\u201c\u201d\u2018\u2019]+$")
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio, the step of splitmix64


@register("filter", "minhash")
class MinHash:
    """Drops near-duplicates of kept documents, by bands of MinHash (Broder 1997; Lee et al. 2022, arXiv:2107.06499).

    A document is the set of its runs of `words` words. Two documents of which a share J of the runs is in both (Jaccard) are
    taken for near-duplicates with the probability 1 - (1 - J^rows)^bands; the defaults are FineWeb's (Penedo et al. 2024,
    section 3.4), which find 77 % of pairs at J = 0.75, 99.9 % at 0.9 and 4 in a million at 0.15. A document that is dropped is
    near to a kept one, and no two kept ones share a band, so that no such pair stands on both sides of a split.

    Numbers and symbols are words like any other; punctuation at the ends of words is ignored beside letters and digits, case is
    as `ignore_case` says. A document of fewer words than a run is one run, so that equal ones are found. A kept document takes
    8 x bands bytes, in a temporary file where all take more than 64 MB.

    bands: groups of hashes, of which one must be equal
    rows: hashes of a band
    words: words of a run
    ignore_case: capitals and small letters are the same
    """

    telling = (
        {"bands": 1, "rows": 1},
        {"rows": 1},
        {"words": 2, "rows": 2},
        {"ignore_case": False},
    )

    def __init__(self, *, bands: int = 14, rows: int = 8, words: int = 5, ignore_case: bool = True):
        for name, value in (("bands", bands), ("rows", rows), ("words", words)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value}")
        self.bands, self.rows, self.words, self.ignore_case = bands, rows, words, ignore_case
        numbers = _mixed(np.arange(1, 2 * bands * rows + 1, dtype=np.uint64))
        self._times, self._plus = numbers[::2] | np.uint64(1), numbers[1::2]
        self._known = WordHashes()
        self._kept = Keys()

    def measure(self, texts: Sequence[str]) -> list[bytes]:
        """The keys of each text, one a band, 8 bytes each."""
        runs = [self._runs(text) for text in texts]
        found = []
        for group in _groups(runs):
            found += [row.tobytes() for row in self._keys(group)]
        return found

    def reason(self, value: bytes) -> str | None:
        keys = np.frombuffer(value, dtype=np.uint64)
        if self._kept.has_any(keys):
            return "nearly the same as one before"
        self._kept.add(keys)
        return None

    def _runs(self, text: str) -> np.ndarray:
        """A hash of 64 bits of each run of words."""
        words = (text.casefold() if self.ignore_case else text).split()
        known = self._known
        if len(known) > KNOWN:
            known.clear()
        hashes = np.array([known[word] for word in words], dtype=np.uint64)
        run = min(self.words, len(words))
        # An array, since numpy warns where a single number overflows.
        total = np.full(len(words) - run + 1, run, dtype=np.uint64)
        for i in range(run):
            total = total * GOLDEN + hashes[i : len(total) + i]
        return _mixed(total)

    def _keys(self, runs: Sequence[np.ndarray]) -> np.ndarray:
        """(documents, bands)"""
        each = np.concatenate(runs)
        starts = np.cumsum([0, *map(len, runs[:-1])])
        # Multiply-add modulo 2^64 is a permutation of the runs' hashes, whose least is one of them at random.
        least = np.empty((len(runs), len(self._times)), dtype=np.uint64)
        for i, (times, plus) in enumerate(zip(self._times, self._plus, strict=True)):
            least[:, i] = np.minimum.reduceat(each * times + plus, starts)
        rows = least.reshape(len(runs), self.bands, self.rows)
        total = np.broadcast_to(np.arange(self.bands, dtype=np.uint64), rows.shape[:2]).copy()
        for i in range(self.rows):
            total = _mixed(total ^ rows[:, :, i])
        return total


class WordHashes(dict[str, int]):
    """Hashes of 64 bits by word, computed when they are first asked for."""

    def __missing__(self, word: str) -> int:
        # A word of symbols alone is kept as it is: 2 + 3 and 2 - 3 are two sums.
        raw = (EDGES.sub("", word) or word).encode("utf-8", "surrogatepass")
        # Not hash(), which Python salts in each process.
        value = self[word] = int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")
        return value


class Keys:
    """A set of keys of 64 bits: the last ones in a set, those before in a sorted array, and sorted arrays in a file."""

    def __init__(self) -> None:
        self.recent: set[int] = set()
        self.sorted = np.empty(0, dtype=np.uint64)
        self.stored: list[np.ndarray] = []

    def has_any(self, keys: np.ndarray) -> bool:
        if not self.recent.isdisjoint(keys.tolist()):
            return True
        for of in (self.sorted, *self.stored):
            if len(of) and bool((of[np.minimum(np.searchsorted(of, keys), len(of) - 1)] == keys).any()):
                return True
        return False

    def add(self, keys: np.ndarray) -> None:
        self.recent.update(keys.tolist())
        if len(self.recent) <= max(RECENT, len(self.sorted) // 16):
            return
        recent = np.sort(np.fromiter(self.recent, dtype=np.uint64, count=len(self.recent)))
        self.recent.clear()
        self.sorted = np.insert(self.sorted, np.searchsorted(self.sorted, recent), recent)
        if len(self.sorted) > IN_MEMORY:
            with tempfile.TemporaryFile() as file:  # which is gone with the last map of it
                file.write(self.sorted.tobytes())
                file.flush()
                self.stored.append(np.memmap(file, dtype=np.uint64, mode="r"))
            self.sorted = np.empty(0, dtype=np.uint64)


def _groups(runs: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    """The same in their order, some AT_ONCE hashes together."""
    sizes = itertools.accumulate(map(len, runs))
    grouped = itertools.groupby(zip(sizes, runs, strict=True), lambda pair: pair[0] // AT_ONCE)
    return [[run for _, run in group] for _, group in grouped]


def _mixed(x: np.ndarray) -> np.ndarray:
    """splitmix64's last step (Steele et al. 2014): each bit depends on all of x, and no two x give the same."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
