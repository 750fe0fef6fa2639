"""Interpolated Kneser-Ney bigram and trigram: what a model must beat to have learnt more than local counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CHUNK = 1 << 20  # tokens looked up at once


class KneserNey:
    """Interpolated Kneser-Ney (Kneser & Ney 1995; Chen & Goodman 1999, section 2.7) of one order over token ids.

    p(w | h) = max(c(hw) - d, 0) / c(h) + d N(h) / c(h) p(w | h without its first token), with N(h) the number of
    distinct successors of h. Counts are raw in the highest order, and numbers of distinct predecessors below. Each
    order has its own d = n1 / (n1 + 2 n2). Unigrams are interpolated with the uniform distribution over `vocab_size`
    ids, so that each id has p > 0 and p sums to 1 after any history.
    """

    def __init__(self, tokens: np.ndarray, vocab_size: int, order: int):
        # Grams are numbers to the base V in int64, which np.unique sorts; Python's own ints do not overflow here.
        if vocab_size**order >= 2**63:
            raise ValueError(f"order {order} over {vocab_size} ids does not fit into 64 bits")
        self.vocab_size = vocab_size
        self.order = order
        self.levels: list[_Level] = []  # from the highest order to unigrams
        # np.unique sorts: all grams of one history are neighbours, and can be looked up by halves.
        grams, counts = np.unique(_grams(tokens, vocab_size, order), return_counts=True)
        for n in range(order, 0, -1):
            self.levels.append(_Level(grams, counts, vocab_size))
            if n > 1:  # without its first token: each distinct gram is one predecessor
                grams, counts = np.unique(grams % vocab_size ** (n - 1), return_counts=True)

    def probabilities(self, grams: np.ndarray) -> np.ndarray:
        """p(last | those before) for each row of grams (n, m): m = order, or less (then the lower orders are used)."""
        width = grams.shape[1]
        # The uniform distribution stands under the unigrams (Chen & Goodman 1999), so that no id has p = 0.
        p = np.full(len(grams), 1 / self.vocab_size)
        for n in range(1, width + 1):
            p = self.levels[self.order - n].refine(_join(grams[:, width - n :], self.vocab_size), p)
        return p

    def bits(self, tokens: np.ndarray) -> float:
        """-log2 p of a text, its first tokens with the history that they have."""
        tokens = np.asarray(tokens, dtype=np.int64)
        first = min(self.order - 1, len(tokens))
        total = -sum(float(np.log2(self.probabilities(tokens[None, : i + 1]))[0]) for i in range(first))
        if len(tokens) >= self.order:
            # A view: rows overlap in memory, and nothing is copied but a chunk at a time.
            rows = np.lib.stride_tricks.sliding_window_view(tokens, self.order)
            for at in range(0, len(rows), CHUNK):
                total -= float(np.log2(self.probabilities(rows[at : at + CHUNK])).sum())
        return total


class _Level:
    """Counts of one order, ready for lookup: grams as sorted integers, histories as gram // vocab_size."""

    def __init__(self, grams: np.ndarray, counts: np.ndarray, vocab_size: int):
        self.grams, self.counts, self.vocab_size = grams, counts, vocab_size
        self.histories, begin = np.unique(grams // vocab_size, return_index=True)
        if len(grams):
            self.totals = np.add.reduceat(counts, begin)
        else:
            self.totals = np.zeros(0, dtype=np.int64)
        self.successors = np.diff(np.append(begin, len(grams)))
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        # With no gram seen once the estimate is 0, and an unseen token would get no mass at all.
        self.discount = once / (once + 2 * twice) if once else 0.5

    def refine(self, grams: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """p of this order from p of the one below; a history never seen leaves that as it is."""
        if not len(self.grams):
            return lower
        at, seen = _find(self.histories, grams // self.vocab_size)
        total = self.totals[at]
        place, known = _find(self.grams, grams)
        count = np.where(known, self.counts[place], 0)
        own = np.maximum(count - self.discount, 0) / total
        return np.where(seen, own + self.discount * self.successors[at] / total * lower, lower)


def kneser_ney(
    train_tokens: np.ndarray, validation_tokens: np.ndarray, size: int, vocab_size: int, orders: Sequence[int] = (2, 3)
) -> dict[int, float]:
    """Bits per byte of the validation tokens under models of the training tokens, by order.

    `size`: bytes of the text that the validation tokens are; `vocab_size`: of the uniform distribution.
    """
    if not size:
        raise ValueError("the validation tokens stand for no text: bits per byte are not defined")
    return {n: KneserNey(train_tokens, vocab_size, n).bits(validation_tokens) / size for n in orders}


def _grams(tokens: np.ndarray, vocab_size: int, order: int) -> np.ndarray:
    tokens = np.asarray(tokens, dtype=np.int64)
    n = max(0, len(tokens) - order + 1)
    grams = np.zeros(n, dtype=np.int64)
    for i in range(order):
        grams = grams * vocab_size + tokens[i : i + n]
    return grams


def _join(rows: np.ndarray, vocab_size: int) -> np.ndarray:
    grams = np.zeros(len(rows), dtype=np.int64)
    for column in rows.T:
        grams = grams * vocab_size + column
    return grams


def _find(table: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # searchsorted gives len(table) for what is beyond the last.
    at = np.minimum(np.searchsorted(table, values), len(table) - 1)
    return at, table[at] == values
