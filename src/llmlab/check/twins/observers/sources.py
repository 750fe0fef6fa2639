"""Statistics of what noise leaves of a text, of which a decoder writes all or some."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

Arrays = dict[str, np.ndarray]
LEFT = (30, 31, 20, 32, 21, 33, 34)  # ids of the text that is noised: three sentences, two of which an end closes
REPEATED = (30, 31, 20, 31, 32, 33, 21, 31, 32, 20, 30, 34, 22, 35)  # five sentences, which share tokens
SPLIT = (30, 31, 20, 32, 33, 21, 34, 35, 36, 22, 37, 38)  # four sentences, of which spans are taken


def of_source(source: np.ndarray, tokens: np.ndarray, mask: int) -> Arrays:
    """Statistics of a source of a text of n different tokens, all or some of which the decoder writes.

    `shown/` 1 for each token that is in it; `first/` with which it begins (in the end the mask and eos); `before/` which come
    before each other; `filled/` how many tokens of the text are behind a mask between two others; `masks/` how many there
    are; `lengths/` its tokens.
    """
    n = len(tokens)
    place = {int(token): i for i, token in enumerate(tokens)}
    known = [place[t] if t in place else n if t == mask else n + 1 for t in source.tolist()]
    some = [i for i in known if i < n]
    shown, before, filled = np.zeros(n), np.zeros((n, n)), np.zeros(n)
    np.add.at(shown, some, 1)
    for a, b, c in zip(known, known[1:], known[2:], strict=False):
        if b == n and a < c < n:
            filled[c - a - 1] += 1
    for at, b in enumerate(some):
        before[some[:at], b] += 1
    first = np.eye(n + 2)[known[0]]
    return {
        "shown": shown,
        "first": first,
        "before": before,
        "filled": filled,
        "masks": np.eye(n + 1)[known.count(n)],
        "lengths": np.array(float(len(source))),
    }


def noised(prepared: Arrays, tokens: np.ndarray, special: Mapping[str, int]) -> Arrays:
    """Statistics of a sample of a text whose last two tokens are in none."""
    return of_source(prepared["source_ids"], tokens[:-2], special["mask"])


def gaps(prepared: Arrays, tokens: np.ndarray, special: Mapping[str, int]) -> Arrays:
    """`gaps/` 1 at each place of the source that has a mask."""
    masks = np.zeros(len(tokens))
    masks[: len(prepared["source_ids"])] = prepared["source_ids"] == special["mask"]
    return {"gaps": masks}


def blanks(prepared: Arrays, tokens: np.ndarray, special: Mapping[str, int]) -> Arrays:
    """Statistics of the spans that stand behind a text of different tokens; `counts/` numbers that place one."""
    place = {int(token): i for i, token in enumerate(tokens)}
    ids = prepared["ids"].tolist()
    starts = [i for i, token in enumerate(ids) if token == special["start"]]
    ends = [*starts[1:], len(ids)]
    spans = of_spans([(place[ids[a + 1]], b - a - 1) for a, b in zip(starts, ends, strict=True)], len(place))
    return {**spans, "counts": np.array(float(np.atleast_2d(prepared["positions"]).shape[0]))}


def of_spans(spans: list[tuple[int, int]], n: int) -> Arrays:
    """Statistics of the (begin, length) of spans of n tokens, in the order in which they are filled in.

    `spans/` 1 at their number; `taken/` 1 for each token that is in one; `lengths/` how many spans have so many tokens;
    `first/` where the first one that is filled in begins; `leftmost/` how long the first one of the text is.
    """
    found = {key: np.zeros(n + 1) for key in ("spans", "taken", "lengths", "first", "leftmost")}
    found["spans"][len(spans)] = found["first"][spans[0][0]] = found["leftmost"][min(spans)[1]] = 1
    for begin, length in spans:
        found["taken"][begin : begin + length] += 1
        found["lengths"][length] += 1
    return found
