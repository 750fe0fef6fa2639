"""Samples of objectives that predict the next token of a whole text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ._loss import IGNORED


def shifted(sample: Mapping[str, Any]) -> dict[str, Any]:
    """ids and labels (T,), labels shifted by one, none at what is given; documents (T,), where the sample has them."""
    tokens = np.asarray(sample["tokens"], dtype=np.int64)
    # Shifted here: transformers' models shift inside their loss, and are given labels that equal the ids.
    prepared = {"ids": tokens[:-1], "labels": tokens[1:]}
    if sample.get("given") is not None:
        prepared["labels"] = np.where(sample["given"][1:], IGNORED, tokens[1:])
    if sample.get("documents") is not None:
        prepared["documents"] = np.asarray(sample["documents"], dtype=np.int64)[:-1]
    return prepared
