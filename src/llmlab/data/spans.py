"""Tokens of the answers to questions, found by the bytes of the context that each token accounts for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmlab.data import encoding
from llmlab.data.record_files import Record
from llmlab.data.tokenizer import Tokenizer
from llmlab.errors import UserError


def of_answers(records: Sequence[Record], tokenizer: Tokenizer) -> np.ndarray:
    """(records, 2) int64: the first and the last token of each answer in its context; -1 where there is none."""
    ends: list[np.ndarray] = []
    at, found = 0, np.full((len(records), 2), -1, dtype=np.int64)
    for chunk in encoding.encode(tokenizer, (r["context"] for r in records), sized=True):
        if chunk.sizes is None:
            raise UserError("tokenizer: it does not tell which part of a text its tokens stand for; choose another")
        before = ends[-1][-1] if ends and len(ends[-1]) else 0
        ends.append(before + np.cumsum(chunk.sizes))
        if chunk.last:
            found[at] = _span(records[at], np.concatenate(ends))
            at, ends = at + 1, []
    return found


def _span(record: Record, ends: np.ndarray) -> tuple[int, int]:
    """ends: bytes of the context up to the end of each token."""
    if "answer" not in record:
        return -1, -1
    # In bytes, as a token may be a part of a character.
    begin = len(record["context"][: record["start"]].encode("utf-8"))
    end = begin + len(str(record["answer"]).encode("utf-8"))
    # The first token that reaches beyond the beginning, and the first that reaches the end.
    first, last = int(np.searchsorted(ends, begin, side="right")), int(np.searchsorted(ends, end, side="left"))
    return (first, min(last, len(ends) - 1)) if first < len(ends) else (-1, -1)
