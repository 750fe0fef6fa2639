"""Statistics of samples of masked text in a frame of special tokens: a pair of texts, or one text in spans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Arrays = dict[str, np.ndarray]
Samples = Sequence[Mapping[str, np.ndarray]]


def pairs(found: Samples, name: str, special: Mapping[str, int], seq_len: int) -> Arrays:
    """Outputs of pairs of texts.

    `lengths/` and `first/` how often a sample, and the first of its texts, has so many tokens; `labels/` how often the label is
    1; `number/` how often a sample has so many targets; `together/` how many targets have another one behind them;
    `shown/` how many are read as the mask token, as they are, and as another.
    """
    first = [int((f["segments"] == 0).sum()) - 2 for f in found]
    at = [f["labels"] >= 0 for f in found]
    return {
        f"lengths/{name}": _counts([len(f["ids"]) for f in found], seq_len + 1),
        f"first/{name}": _counts(first, seq_len + 1),
        f"labels/{name}": np.mean([f["pair_labels"] for f in found]),
        f"number/{name}": _counts([int(a.sum()) for a in at], seq_len + 1),
        f"together/{name}": np.mean([(a[1:] & a[:-1]).sum() for a in at]),
        f"shown/{name}": _shown(found, special),
    }


def framed(found: Samples, name: str, special: Mapping[str, int], seq_len: int) -> Arrays:
    """Outputs of spans in one text.

    `targets/` how often each place is one; `spans/` how many spans of so many tokens a sample has; `shown/` how many targets
    are read as the mask token, as they are, and as another; `alike/` how many spans are so as a whole; `documents/` (-1: it has
    none).
    """
    at = np.stack([f["labels"] >= 0 for f in found])
    lengths, alike = np.zeros(seq_len + 1), np.zeros(3)
    for f, here in zip(found, at, strict=True):
        for begin, end in np.flatnonzero(np.diff(np.pad(here, 1).astype(int))).reshape(-1, 2):
            lengths[end - begin] += 1
            alike += _as(f["ids"][begin:end], f["labels"][begin:end], special).all(1)
    return {
        f"targets/{name}": at.mean(0),
        f"spans/{name}": lengths / len(found),
        f"shown/{name}": _shown(found, special),
        f"alike/{name}": alike / len(found),
        f"documents/{name}": found[0].get("documents", np.array(-1)),
    }


def _as(ids: np.ndarray, labels: np.ndarray, special: Mapping[str, int]) -> np.ndarray:
    """(3, n) bool: targets that are read as the mask token, as they are, and as another."""
    mask, kept = ids == special["mask"], ids == labels
    return np.stack([mask & ~kept, kept, ~mask & ~kept])


def _shown(found: Samples, special: Mapping[str, int]) -> np.ndarray:
    at = [f["labels"] >= 0 for f in found]
    ids, labels = (np.concatenate([f[key][a] for f, a in zip(found, at, strict=True)]) for key in ("ids", "labels"))
    return _as(ids, labels, special).sum(1) / len(found)


def _counts(values: Sequence[int], size: int) -> np.ndarray:
    return np.bincount(values, minlength=size) / len(values)
