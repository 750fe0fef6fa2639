"""Character n-grams of words (FastText): Bojanowski et al. 2017, arXiv:1607.04606, section 3.2."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmlab.slots import Vocabulary

NOTHING = -1  # in a row of hashes: no n-gram
BROKEN = "\ufffd"  # what stands for bytes that are a part of a character


def fnv1a(data: bytes) -> int:
    """The 32-bit FNV-1a hash as fastText has it, which takes bytes for signed numbers: of text beyond ASCII it is another."""
    value = 2166136261
    for byte in data:
        # A signed byte above 127 is negative, and sets all bits above it too.
        value = ((value ^ (byte | 0xFFFFFF00 if byte > 127 else byte)) * 16777619) & 0xFFFFFFFF
    return value


def ngrams(word: str, shortest: int, longest: int) -> list[str]:
    """The n-grams of <word>, < and > included, in the order of fastText: by where they begin, the shorter first."""
    text = f"<{word}>"
    spans = [(i, i + n) for i in range(len(text)) for n in range(shortest, longest + 1) if i + n <= len(text)]
    # A mark of its own tells nothing.
    return [text[i:j] for i, j in spans if j - i > 1 or 0 < i < len(text) - 1]


def word_of(text: str) -> str:
    """The word that a token's text spells, without the spaces around it; "" where its bytes are no text of their own."""
    return "" if BROKEN in text else text.strip()


class Subwords:
    """Hashes of the n-grams of each token's word, one behind the other: those of id i from starts[i] to starts[i + 1]."""

    def __init__(self, vocabulary: Vocabulary, shortest: int, longest: int):
        self.shortest, self.longest = shortest, longest
        special = set(vocabulary.special.values())
        words = ["" if i in special else word_of(vocabulary.text(i)) for i in range(vocabulary.size)]
        rows = [self.hashes(word) for word in words]
        self.starts = np.cumsum([0, *map(len, rows)])
        self.flat = np.array([h for row in rows for h in row], dtype=np.int64)
        self.most = max(1, *map(len, rows))

    def hashes(self, word: str) -> list[int]:
        """Those of any word; of no letters there are none."""
        return [fnv1a(gram.encode()) for gram in ngrams(word, self.shortest, self.longest)] if word else []

    def of(self, ids: np.ndarray) -> np.ndarray:
        """(..., W) ids, `NOTHING` for none -> (..., W `most`) hashes."""
        known = ids.clip(min=0)
        first, behind = self.starts[known], np.where(ids < 0, self.starts[known], self.starts[known + 1])
        at = first[..., None] + np.arange(self.most)
        there = at < behind[..., None]
        found = self.flat[np.where(there, at, 0)] if len(self.flat) else np.zeros(at.shape, np.int64)
        return np.where(there, found, NOTHING).reshape(*ids.shape[:-1], -1)


def table(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Rows of unequal lengths as one array, `NOTHING` behind each."""
    made = np.full((len(rows), max([1, *map(len, rows)])), NOTHING, np.int64)
    for i, row in enumerate(rows):
        made[i, : len(row)] = row
    return made
