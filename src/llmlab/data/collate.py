"""From prepared samples to a micro-batch: stacked where they are of one shape, padded where they are not, or packed.

A prepared sample is a dict of arrays. What has as many entries as `ids` (or, of an encoder's, as `source_ids`) goes by
token and is padded with it; all else is stacked. A list of arrays holds the sequences of a sample that has several, as
`row_ids` does: they are padded too, and samples with fewer of them filled up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from llmlab import attributes
from llmlab.slots import Objective
from llmlab.values import IGNORED


class Drawable(Protocol):
    """Samples by their numbers."""

    def __len__(self) -> int: ...
    def __getitem__(self, i: int, /) -> Any: ...


How = Literal["stack", "pad", "pack"]
Prepared = dict[str, Any]
MULTIPLE = 8  # to which a padded length is rounded up: tensor cores take multiples of it, and fewer shapes are compiled


def prepare(objective: Objective, sample: Prepared | list[Prepared], rng: np.random.Generator) -> Prepared:
    """A sample as the objective prepares it; the records of a window, one after the other, as one prepared sample."""
    if isinstance(sample, list):
        return joined([objective.prepare(record, rng) for record in sample])
    return objective.prepare(sample, rng)


def drawn(objective: Objective, samples: Drawable, at: int, rng: np.random.Generator) -> Any:
    """Sample `at`; with another one, where the objective wants it and there is one."""
    sample, n = samples[at], len(samples)
    if n > 1 and isinstance(sample, dict) and attributes.get(objective, "objective", "other"):
        other = int(rng.integers(n - 1))
        sample = {**sample, "other": samples[other + (other >= at)]}
    return sample


def batch(samples: Sequence[Prepared], how: How, pad: int = 0, most: int | None = None) -> dict[str, Tensor]:
    """A micro-batch of prepared samples. pad: the id of a token that stands for nothing. most: beyond which no length is
    rounded up, as a model may have no more positions.

    Padded rows come with `valid`, and `source_valid` for an encoder: bool, False where there is no token. Lists of arrays
    become (B, R, T), of `row_ids` with `row_valid`.
    """
    if how == "stack":
        # Stacked by numpy: one copy, which torch then shares.
        return {name: torch.from_numpy(np.stack([s[name] for s in samples])) for name in samples[0]}
    # An encoder's ids have a length of their own.
    rows = [_padded(samples, prefix, pad, most) for prefix in ("", "source_") if f"{prefix}ids" in samples[0]]
    found = {name: array for row in rows for name, array in row.items()}
    if "row_ids" in samples[0]:
        found |= _padded_rows(samples, pad, most)
    for name in samples[0]:
        if name not in found:
            found[name] = np.stack([s[name] for s in samples])
    return {name: torch.from_numpy(array) for name, array in found.items()}


def joined(records: Sequence[Prepared]) -> Prepared:
    """Prepared records one after the other in one window, which `documents` keep apart and whose `positions` begin anew.

    UserError where something of a record does not go by token: there is no place for it in a window.
    """
    found: Prepared = {}
    for name in records[0]:
        if not by_token(records[0], name) or name.startswith("source_"):
            raise ValueError(f"{name} is not a value for each token, so records can't be packed: collate must be 'pad'")
        found[name] = np.concatenate([r[name] for r in records], -1)
    lengths = [len(r["ids"]) for r in records]
    # Documents are numbered within the window: a batch compares them within a row only.
    found["documents"] = np.repeat(np.arange(len(records)), lengths)
    found["positions"] = np.concatenate([np.arange(n) for n in lengths])
    return found


def by_token(sample: Mapping[str, Any], name: str) -> bool:
    """True if an array of a sample has an entry for each of the tokens that it is read with."""
    tokens = sample.get("source_ids" if name.startswith("source_") else "ids")
    # Positions that are pairs are (2, T).
    return tokens is not None and np.ndim(sample[name]) > 0 and np.shape(sample[name])[-1] == len(tokens)


def _padded_rows(samples: Sequence[Prepared], pad: int, most: int | None) -> dict[str, np.ndarray]:
    """Lists of arrays as (B, R, T), R of the sample that has most."""
    # By name, as a sample may be a piece of a batch, whose rows are one array.
    names = [name for name in samples[0] if name.startswith("row_") and name != "row_valid"]
    n = max(len(s["row_ids"]) for s in samples)
    nothing: Prepared = {"ids": np.zeros(0, np.int64)}
    flat: list[Prepared] = []
    for sample in samples:
        rows = [{name.removeprefix("row_"): sample[name][i] for name in names} for i in range(len(sample["row_ids"]))]
        flat += rows + [{**nothing, **{k: v[:0] for k, v in rows[0].items()}}] * (n - len(rows))
    padded = _padded(flat, "", pad, most)
    return {f"row_{name}": array.reshape(len(samples), n, -1) for name, array in padded.items()}


def _padded(samples: Sequence[Prepared], prefix: str, pad: int, most: int | None) -> dict[str, np.ndarray]:
    lengths = [len(s[f"{prefix}ids"]) for s in samples]
    width = -(-max(lengths) // MULTIPLE) * MULTIPLE
    if most is not None:
        width = max(min(width, most), max(lengths))
    # A scalar of every sample has no length to go by; a sample of one token has arrays of one entry.
    names = [n for n in samples[0] if n.startswith("source_") == bool(prefix) and all(by_token(s, n) for s in samples)]
    found = {f"{prefix}valid": np.arange(width) < np.array(lengths)[:, None]}
    for name in names:
        # A row's padding is a document of its own number, which no token has, so that it is seen by none.
        fill = {"ids": pad, "labels": IGNORED, "documents": -1}.get(name.removeprefix("source_"), 0)
        shape = (len(samples), *samples[0][name].shape[:-1], width)
        rows = np.full(shape, fill, dtype=samples[0][name].dtype)
        for row, sample in zip(rows, samples, strict=True):
            row[..., : sample[name].shape[-1]] = sample[name]
        found[name] = rows
    return found
