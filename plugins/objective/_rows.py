"""Several sequences of one sample, which a model reads as rows of one batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

Prepared = dict[str, Any]


def prepared_rows(sample: Mapping[str, Any]) -> Prepared:
    """row_ids and, where the tokenizer tells texts apart, row_segments: a list of (n,) int64, one of each sequence."""
    found: Prepared = {"row_ids": [np.asarray(row, dtype=np.int64) for row in sample["rows"]]}
    if "row_segments" in sample:
        found["row_segments"] = [np.asarray(row, dtype=np.int64) for row in sample["row_segments"]]
    return found


def prepared_text(sample: Mapping[str, Any]) -> Prepared:
    """ids, and segments where there are any, (n,) int64."""
    found: Prepared = {"ids": np.asarray(sample["tokens"], dtype=np.int64)}
    if "segments" in sample:
        found["segments"] = np.asarray(sample["segments"], dtype=np.int64)
    return found


def flattened(batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """(a batch of the n sequences that there are, (n, T); which they are, (B, R) bool)."""
    there_BR = batch["row_valid"].any(-1)
    names = [name for name in ("row_ids", "row_valid", "row_segments") if name in batch]
    return {name.removeprefix("row_"): batch[name][there_BR] for name in names}, there_BR
