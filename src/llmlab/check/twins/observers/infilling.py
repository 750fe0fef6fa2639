"""Texts, and how the documents of one were rearranged so that their middles come last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Text(NamedTuple):
    """A text of seq_len + 1 tokens. given: True for tokens that are no targets. documents: their numbers. other: tokens of
    another text with the same documents, where it comes with one."""

    tokens: np.ndarray
    given: np.ndarray | None = None
    documents: np.ndarray | None = None
    other: np.ndarray | None = None

    def sample(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            **({"given": self.given} if self.given is not None else {}),
            "documents": self.documents,
            **({"other": {"tokens": self.other, "documents": self.documents}} if self.other is not None else {}),
        }


class First(NamedTuple):
    """The first document of a text, if it is rearranged: tokens of its prefix and middle.

    suffix_first: nothing stands between the first two sentinels; a prefix then counts as a part of the middle behind it.
    """

    suffix_first: bool
    prefix: int
    middle: int


class Infilled(NamedTuple):
    """tokens: that are read, and the last label. where: the place among them of each token of the text, in its order.
    rearranged: number of documents."""

    tokens: np.ndarray
    where: np.ndarray
    rearranged: int
    first: First | None


def infilled(prepared: Mapping[str, np.ndarray], text: Text, special: Mapping[str, int]) -> Infilled:
    """How documents were rearranged, read from the sentinels in what was prepared.

    A document ends with eos or where `documents` change. Tokens that are given stay before its first sentinel.
    """
    prefix, suffix, middle = (special[f"fim_{name}"] for name in ("prefix", "suffix", "middle"))
    ids, last = prepared["ids"], prepared["labels"][-1]
    if last < 0:  # the sentinel of an empty middle, or the window's first token, which are no targets
        last = middle if (ids == prefix).sum() > (ids == middle).sum() else text.tokens[0]
    tokens = np.append(ids, last)
    ends = text.tokens[:-1] == special["eos"]
    if text.documents is not None:
        ends = ends | (np.diff(text.documents) != 0)
    given = np.zeros(len(text.tokens), bool) if text.given is None else text.given
    where: list[int] = []
    at, number, first = 0, 0, None
    for begin, end in zip([0, *np.flatnonzero(ends) + 1], [*np.flatnonzero(ends) + 1, len(text.tokens)], strict=True):
        own, lead = tokens[at:].tolist(), 0
        while lead < end - begin and given[begin + lead]:
            lead += 1
        if own[lead : lead + 1] != [prefix] or middle not in own:
            n = min(end - begin, len(own))
            where += range(at, at + n)
            at += n
            continue
        n = min(end - begin, len(own) - 3)
        cuts = own.index(suffix), own.index(middle)
        of_suffix = range(at + cuts[0] + 1, at + cuts[1])
        # What stands before the sentinel of the suffix, and behind that of the middle the rest of the document.
        before, rest = range(at + lead + 1, at + cuts[0]), range(at + cuts[1] + 1, at + n + 3)
        tail = int(text.tokens[begin + n - 1] == special["eos"] and n > lead)
        where += [*range(at, at + lead), *before, *rest[: len(rest) - tail], *of_suffix, *rest[len(rest) - tail :]]
        if begin == 0:
            body = n - lead - tail - len(of_suffix)
            first = First(cuts[0] == lead + 1, len(before), body - len(before))
        at, number = at + n + 3, number + 1
    return Infilled(tokens, np.array(where), number, first)
