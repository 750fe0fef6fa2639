"""Counts of pairs of tokens that stand near each other in a text, made once and kept on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmlab.data import cache

CHUNK = 1 << 18  # tokens whose pairs are counted at once
MOST = 1 << 23  # pairs that are held in memory, 16 bytes each; more go to disk
KEYS, TIMES = "keys.npy", "times.npy"
Counted = tuple[np.ndarray, np.ndarray]  # (keys in ascending order, how often)


class Pairs:
    """pairs(a, b): how often each token of `a` stands near its one of `b`, float32 of their shape; 0 of two that never do.

    The sum of 1 / distance over all places at which one stands at most `window` tokens before or behind the other with no
    special token between, as GloVe counts (Pennington et al. 2014, section 4.2). So a token that is near itself counts twice.
    """

    def __init__(self, folder: Path, size: int):
        self.folder, self.size = folder, size
        self._open: Counted | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A memory map would be pickled with all that is in the file.
        return {**self.__dict__, "_open": None}

    def __call__(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        if self._open is None:
            self._open = np.load(self.folder / KEYS, mmap_mode="r"), np.load(self.folder / TIMES, mmap_mode="r")
        keys, times = self._open
        wanted = _key(np.asarray(a, np.int64), np.asarray(b, np.int64), self.size)
        if not len(keys):
            return np.zeros(wanted.shape, np.float32)
        at = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
        return np.where(keys[at] == wanted, times[at], np.float32(0))


def kept(corpus: Path, tokens: np.ndarray, size: int, window: int, special: Sequence[int]) -> Pairs:
    """The pairs of the training text of a prepared corpus, counted now where they are not in the cache. UserError if the cache
    can't be written."""
    # The corpus's folder is named by all that decides what is in it, the code of this package included.
    folder = cache.root() / "pairs" / cache.digest([corpus.name, window, sorted(special)])[:24]

    def make(at: Path) -> dict[str, Any]:
        return {"window": window, "pairs": write(at, tokens, size, window, special)}

    cache.open_or_make(folder, make)
    return Pairs(folder, size)


def write(folder: Path, tokens: np.ndarray, size: int, window: int, special: Sequence[int], most: int = MOST) -> int:
    """Count the pairs of a text, with at most about 2 x `most` of them in memory; returns how many there are."""
    runs: list[Path] = []
    held: Counted = np.zeros(0, np.int64), np.zeros(0)
    for piece in _pieces(tokens, size, window, special):
        held = _sum([held, piece])
        if len(held[0]) > most:
            runs.append(_spill(folder, len(runs), held))
            held = held[0][:0], held[1][:0]
    count = 0
    raw = folder / "keys.raw", folder / "times.raw"
    with raw[0].open("wb") as keys, raw[1].open("wb") as times:
        for some, often in _joined(runs, held, most):
            keys.write(some.tobytes())
            times.write(often.astype(np.float32).tobytes())
            count += len(some)
    for run in runs:
        run.unlink()
    cache.raw_to_npy([raw[0]], folder / KEYS, np.int64, np.int64, count)
    cache.raw_to_npy([raw[1]], folder / TIMES, np.float32, np.float32, count)
    return count


def _key(a: np.ndarray, b: np.ndarray, size: int) -> np.ndarray:
    """One number for two tokens, whichever comes first: they are as often near each other."""
    return np.minimum(a, b) * size + np.maximum(a, b)


def _pieces(tokens: np.ndarray, size: int, window: int, special: Sequence[int]) -> Iterator[Counted]:
    for begin in range(0, len(tokens), CHUNK):
        # With the words behind it that its last ones reach.
        text = np.asarray(tokens[begin : begin + CHUNK + window], dtype=np.int64)
        ends = np.isin(text, special)
        # A special token ends a document and stands for no word.
        document = np.cumsum(ends)
        keys, often = [], []
        for distance in range(1, min(window, len(text) - 1) + 1):
            first = min(CHUNK, len(text) - distance)
            a, b = text[:first], text[distance : distance + first]
            near = ~ends[:first] & (document[:first] == document[distance : distance + first])
            a, b = a[near], b[near]
            keys.append(_key(a, b, size))
            often.append(np.where(a == b, 2, 1) / distance)
        if keys:
            yield _sum([(np.concatenate(keys), np.concatenate(often))])


def _sum(counted: Sequence[Counted]) -> Counted:
    """Counts in ascending order of their keys, each key once."""
    keys, often = (np.concatenate(each) for each in zip(*counted, strict=True))
    # Stable, so that sums are of the same order on any machine.
    order = np.argsort(keys, kind="stable")
    keys, often = keys[order], often[order]
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[first], np.add.reduceat(often, first) if len(first) else often


def _spill(folder: Path, number: int, held: Counted) -> Path:
    path = folder / f"run{number}.npy"
    # In one array: a count is a float64, of which an int64's bytes are kept as they are.
    cache.save_array(path, np.stack([held[0], held[1].view(np.int64)]))
    return path


def _joined(runs: Sequence[Path], held: Counted, most: int) -> Iterator[Counted]:
    """The sum of all, a range of keys at a time."""
    sorted_runs = [held]
    for run in runs:
        both = np.load(run, mmap_mode="r")
        sorted_runs.append((both[0], both[1].view(np.float64)))
    total = sum(len(keys) for keys, _ in sorted_runs)
    # Keys from all over the runs, each for as many, tell where to cut.
    step = max(1, total // 1024)
    spread = np.sort(np.concatenate([np.asarray(keys[::step]) for keys, _ in sorted_runs]))
    cuts = spread[:: max(1, len(spread) * most // max(total, 1))][1:]
    for low, high in zip([None, *cuts], [*cuts, None], strict=True):
        parts = []
        for keys, often in sorted_runs:
            begin = 0 if low is None else int(np.searchsorted(keys, low))
            end = len(keys) if high is None else int(np.searchsorted(keys, high))
            parts.append((np.asarray(keys[begin:end]), np.asarray(often[begin:end])))
        yield _sum(parts)
