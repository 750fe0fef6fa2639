"""Batches whose loss is computed, of an objective that restores a text: (a batch, what is else in one without targets)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from llmlab import attributes
from llmlab.data import stand_in
from llmlab.slots import Objective
from llmlab.values import IGNORED

SEQ_LEN, ROWS, SIZE = 6, 3, 9
SEED = 2  # of chances at which some tokens are drawn as they were
Batch = dict[str, Tensor]
Made = Callable[[Objective], tuple[Batch, Batch]]
TOKENS = torch.arange(ROWS * SEQ_LEN).view(ROWS, SEQ_LEN)


def rows() -> np.ndarray:
    return np.arange(ROWS * (SEQ_LEN + 1)).reshape(ROWS, -1) * 5 % SIZE


def labelled(objective: Objective) -> tuple[Batch, Batch]:
    """Labels at two of three tokens."""
    labels = ((TOKENS * 5 + 2) % SIZE).where(TOKENS % 3 != 1, IGNORED)
    batch = {"ids": (TOKENS * 7 + 1) % SIZE, "labels": labels}
    if attributes.get(objective, "objective", "topologies") == ("encoder_decoder",):
        batch["source_ids"] = (TOKENS * 4) % SIZE
    none = {"labels": torch.full_like(labels, IGNORED)}
    if attributes.get(objective, "objective", "halves"):
        batch["previous"] = ((TOKENS * 4 + 1) % SIZE).where(TOKENS % 5 != 2, IGNORED)
        none["previous"] = none["labels"]
    if attributes.get(objective, "objective", "models"):
        batch["documents"] = TOKENS // 4
    return batch, none


def sampled(objective: Objective) -> tuple[Batch, Batch]:
    """And chances at which a companion's tokens are drawn."""
    batch, none = labelled(objective)
    batch = {**stand_in.batch(objective, rows(), np.random.default_rng(SEED)), **batch}
    # The first and the last token, as chances go.
    batch["chance"][0, [0, 2]] = batch["chance"].new_tensor([0.0, 1 - 2**-30])
    if "judged" in batch:
        batch["judged"] = (TOKENS % 5 != 1) | (batch["labels"] >= 0)
    return batch, none


def pair(objective: Objective) -> tuple[Batch, Batch]:
    batch, none = labelled(objective)
    segments = torch.arange(SEQ_LEN).ge(3).long().expand(ROWS, -1)
    return {**batch, "segments": segments, "pair_labels": torch.tensor([0, 1, 1])}, none


def framed(objective: Objective) -> tuple[Batch, Batch]:
    batch, none = labelled(objective)
    boundaries = ((TOKENS * 2 + 3) % SIZE).where(TOKENS % 4 != 2, IGNORED)
    return {**batch, "boundary_labels": boundaries}, {**none, "boundary_labels": none["labels"]}


def queries(objective: Objective) -> tuple[Batch, Batch]:
    batch, none = labelled(objective)
    asks = {"rank": TOKENS % 4, "positions": TOKENS % SEQ_LEN, "queries": batch["labels"] != IGNORED}
    asks |= {"before_ids": TOKENS[:, :2] % SIZE, "before_rank": TOKENS[:, :2] % 2}
    if getattr(objective, "memory", 0):
        asks |= {"documents": TOKENS // 4, "before_documents": (TOKENS[:, :2] - 1) // 4}
    return {**batch, **asks}, none


def diffused(objective: Objective) -> tuple[Batch, Batch]:
    batch, none = labelled(objective)
    return {**batch, "weight": torch.tensor([1.5, 4.0, 1.0]), "maskable": torch.tensor([6, 5, 6])}, none


def pairs(objective: Objective) -> tuple[Batch, Batch]:
    batch = stand_in.batch(objective, rows(), np.random.default_rng(0))
    return batch, {"real": torch.full_like(batch["real"], -1)}
