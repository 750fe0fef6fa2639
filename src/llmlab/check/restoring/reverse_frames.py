"""Reverses of masked text in a frame of special tokens."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from llmlab.check.subject import CheckFailed
from llmlab.check.twins.observers.texts import Text
from llmlab.values import IGNORED

Prepared = Mapping[str, np.ndarray]


def pair(prepared: Prepared, text: Text, special: Mapping[str, int]) -> np.ndarray:
    """[CLS] A [SEP] B [SEP], A and B cut one behind the other from the text; B from another where it comes with one and the
    label is 1; A and B the other way round where it comes with none."""
    whole = np.where(prepared["labels"] == IGNORED, prepared["ids"], prepared["labels"])
    first = int((prepared["segments"] == 0).sum())
    one, two = whole[1 : first - 1], whole[first:-1]
    if not len(one) or not len(two):
        raise CheckFailed("one of the texts of a pair has no token")
    ends = [int(token) for token in (whole[0], whole[first - 1], whole[-1])]
    if ends != [special["cls"], special["sep"], special["sep"]]:
        raise CheckFailed(f"the frame of a pair is {ends}, not cls, sep and sep")
    if not np.array_equal(prepared["segments"], np.arange(len(whole)) >= first):
        raise CheckFailed("the segments are not 0 up to the first sep, and then 1")
    label = int(prepared["pair_labels"])
    own = _contiguous(text.tokens, text)
    if label and text.other is not None:
        want = [own[: len(one)], _contiguous(text.other, text)[: len(two)]]
    elif label:
        want = [own[len(two) : len(one) + len(two)], own[: len(two)]]
    else:
        want = [own[: len(one)], own[len(one) : len(one) + len(two)]]
    for got, wanted in zip((one, two), want, strict=True):
        if not np.array_equal(got, wanted):
            raise CheckFailed(
                f"a text of a pair with label {label} is {got.tolist()}, but the text has {wanted.tolist()}"
            )
    return text.tokens[:-1]


def _contiguous(tokens: np.ndarray, text: Text) -> np.ndarray:
    """What a pair is cut from: the tokens of the document that has most of them, without those that are given."""
    # Another text comes without `given`.
    own = np.ones(len(tokens), bool) if text.given is None or tokens is text.other else ~text.given
    if text.documents is not None:
        own &= text.documents == max(set(text.documents.tolist()), key=lambda d: (own & (text.documents == d)).sum())
    return tokens[own]


def framed(prepared: Prepared, text: Text, special: Mapping[str, int]) -> np.ndarray:
    """[CLS] text [SEP], and the boundaries of each target: the tokens beside its span, which are none, and its place in it."""
    labels = prepared["labels"]
    whole = np.where(labels == IGNORED, prepared["ids"], labels)
    if [int(whole[0]), int(whole[-1])] != [special["cls"], special["sep"]]:
        raise CheckFailed(f"the frame of a text is {whole[[0, -1]].tolist()}, not cls and sep")
    asked = prepared["boundary_labels"] != IGNORED
    rows = zip(
        *(prepared[f"boundary_{key}"][asked].tolist() for key in ("left", "right", "offset", "labels")), strict=True
    )
    want = []
    for at in np.flatnonzero(labels != IGNORED).tolist():
        left = at - 1
        while labels[left] != IGNORED:
            left -= 1
        right = at + 1
        while labels[right] != IGNORED:
            right += 1
        want.append((left, right, at - left - 1, int(labels[at])))
    if (got := list(rows)) != want:
        raise CheckFailed(f"the boundaries, offsets and labels of targets are {got}, but their spans have {want}")
    if (known := prepared.get("documents")) is not None and any(len({*known[lo : hi + 1]}) > 1 for lo, hi, *_ in want):
        raise CheckFailed("a span, or a token beside it, is of another document")
    # The last two tokens of the text have no room in the frame.
    return np.append(whole[1:-1], text.tokens[len(whole) - 2 : -1])
