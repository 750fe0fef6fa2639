"""Pairs of texts in BERT's frame."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from llmlab.slots import Vocabulary

Array = np.ndarray
FRAME = 3  # [CLS], and [SEP] behind each text


class Pairs:
    """[CLS] A [SEP] B [SEP] of at most seq_len tokens, where B follows A (label 0) or, half of the time, does not (label 1).

    nsp: B is then text of another window (BERT: Devlin et al. 2018, arXiv:1810.04805, appendix A.1). sop: A and B have changed
    places (ALBERT: Lan et al. 2019, arXiv:1909.11942, section 3.1). short: share of pairs of a random shorter length.
    """

    def __init__(self, kind: Literal["nsp", "sop"], vocabulary: Vocabulary, seq_len: int, short: float):
        if not 0 <= short <= 1:
            raise ValueError(f"objective.short must be in [0, 1], but is {short}")
        if seq_len < FRAME + 2:
            raise ValueError(
                f"objective.pair={kind} needs data.seq_len of at least {FRAME + 2}, for a token of each text in its "
                f"frame, but it is {seq_len}"
            )
        self.kind, self.room, self.short = kind, seq_len - FRAME, short
        self.cls, self.sep = ([vocabulary.special[name]] for name in ("cls", "sep"))

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Array]:
        """ids and segments (n,), label ()."""
        text = contiguous(sample)
        length = min(self.room, len(text))
        # As BERT's create_pretraining_data.py (`short_seq_prob`): from 2 tokens on.
        if rng.random() < self.short:
            length = int(rng.integers(2, length + 1))
        first = int(rng.integers(1, length))
        one, two = text[:first], text[first:length]
        label = rng.random() < 0.5
        if self.kind == "sop" and label:
            one, two = two, one
        elif self.kind == "nsp" and "other" not in sample:
            label = False  # the only window there is: all that it has follows
        elif label:
            # Where the other window begins, which is as far into a sentence as where B does.
            two = contiguous(sample["other"])[: len(two)]
        ids = np.concatenate([self.cls, one, self.sep, two, self.sep]).astype(np.int64)
        segments = np.repeat(np.arange(2), [len(one) + 2, len(two) + 1])
        return {"ids": ids, "segments": segments, "label": np.asarray(label, np.int64)}


def contiguous(sample: dict[str, Any]) -> Array:
    """The text of a window from which a pair is cut: without what is given, and of the document that has most of it."""
    tokens = np.asarray(sample["tokens"], dtype=np.int64)
    own = np.ones(len(tokens), bool) if sample.get("given") is None else ~sample["given"]
    if sample.get("documents") is not None:
        numbers, counts = np.unique(np.asarray(sample["documents"])[own], return_counts=True)
        if len(numbers):
            own &= sample["documents"] == numbers[counts.argmax()]
    # A text of one token is no two: then the window as it is.
    return tokens[own] if own.sum() > 1 else tokens
