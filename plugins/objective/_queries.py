"""Second streams: queries behind a text, each of which asks for one of its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from llmlab.slots import Loss, Output, Vocabulary

from ._loss import IGNORED, token_loss

Array = np.ndarray
NOWHERE = -1  # a rank before all others: such a query sees itself alone


def ordinary(sample: Mapping[str, Any], special: Array) -> Array:
    """(seq_len + 1,) bool: True for tokens that may be targets, which are neither special nor given.

    special (V,): True for special ids; looking them up takes a tenth of the time of np.isin.
    """
    may = ~special[sample["tokens"]]
    return may if sample.get("given") is None else may & ~sample["given"]


def special_table(vocabulary: Vocabulary) -> Array:
    """(V,) bool: True for the ids of special tokens."""
    return np.isin(np.arange(vocabulary.size), list(vocabulary.special.values()))


def ranks_of(order: Array, length: int) -> Array:
    """1, 2, ... at the places of the targets, in the order in which they are predicted; 0 at all other text."""
    rank = np.zeros(length, dtype=np.int64)
    rank[order] = np.arange(1, len(order) + 1)
    return rank


def asked(text: Array, order: Array, n: int) -> tuple[Array, Array, Array, Array]:
    """Ranks of a text (T,), and of n queries their places in the text, ranks and labels.

    order: places of the targets, in the order in which they are predicted. Queries beyond them ask for nothing.
    """
    rank = ranks_of(order, len(text))
    # They stand where there is text that all see, so that in a document of its own such a query is not alone with targets.
    where = np.full(n, rank.argmin(), dtype=np.int64)
    where[: len(order)] = order
    ranks, labels = np.full(n, NOWHERE), np.full(n, IGNORED)
    ranks[: len(order)], labels[: len(order)] = rank[order], text[order]
    return rank, where, ranks, labels


def places(documents: Array | None, n: int) -> Array:
    """Positions of a text's tokens, which begin anew with each document."""
    at = np.arange(n)
    if documents is None:
        return at
    begins = np.append(True, documents[1:] != documents[:-1])
    return at - np.maximum.accumulate(at * begins)


def asked_loss(output: Output, labels: Tensor) -> Loss:
    """Cross-entropy where labels (B, T) are targets, of which alone the head has given scores, and their accuracy."""
    where = labels != IGNORED
    logits, labels = output.heads["tokens"], labels[where]
    right = (logits.detach().argmax(-1) == labels).sum()
    return token_loss(output, logits, labels, {"accuracy": (right, where.sum())})
