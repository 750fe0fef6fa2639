"""Micro-batches as a function of (seed, step): the loader keeps no state, so a resumed run sees the same.

Step k is samples [k * batch_size, (k + 1) * batch_size) of the shuffled stream. Micro-batch j of rank r takes `micro`
of them from (j * world + r) * micro on: whatever the ranks and the accumulation, a step is the same sequences.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from llmlab import attributes, measures
from llmlab.data import collate
from llmlab.data.order import indices
from llmlab.data.samples import Samples
from llmlab.data.windows import Windows
from llmlab.errors import UserError
from llmlab.seeds import key
from llmlab.slots import Objective

Sample = dict[str, Any]
Batch = dict[str, Any]  # tensors, and the dict of `counts`


def train_loader(
    windows: Samples,
    objective: Objective,
    seed: int,
    batch_size: int,
    micro: int,
    rank: int = 0,
    world: int = 1,
    accumulate: int = 1,
    start_step: int = 0,
    steps: int = 1,
    num_workers: int = 0,
) -> DataLoader:
    """Micro-batches of this rank from `start_step` to the last of `steps` optimizer steps, as dicts of stacked tensors.

    Each has `counts`, by term of the loss int64 without dimensions: targets of its whole optimizer step, over all ranks and
    micro-batches.
    Its length is that of the whole run, for a run is one epoch wherever it starts. Raises UserError if the corpus has
    fewer windows than one batch.
    """
    if micro * world * accumulate != batch_size:
        raise UserError(
            f"train.batch_size={batch_size} is not micro-batch size x devices x accumulation: "
            f"{micro} x {world} x {accumulate}"
        )
    if len(windows) < batch_size:
        has = f"{len(windows)} samples of the training part: more records or a smaller value are needed"
        if isinstance(windows, Windows):
            has = (
                f"{len(windows)} windows of data.seq_len={windows.seq_len} that the training part has "
                f"({len(windows.stream):,} tokens): more text or a smaller value is needed"
            )
        raise UserError(f"train.batch_size={batch_size} is more than the {has}")
    return DataLoader(
        MicroSteps(windows, objective, seed, batch_size, micro, rank, world, accumulate),
        # None: an item is a whole micro-batch already, and is not stacked once more.
        batch_size=None,
        sampler=From(start_step * accumulate, steps * accumulate),
        num_workers=num_workers,
        worker_init_fn=_leave_interrupts_to_the_parent,
        # torch warns of pinned memory where there is no accelerator to copy it to.
        pin_memory=torch.cuda.is_available(),
    )


def validation_loader(
    windows: Samples, objective: Objective, micro: int, rank: int = 0, world: int = 1, limit: int | None = None
) -> DataLoader:
    """All windows in order, or the first `limit` of them, each in one micro-batch of one rank, the same in every run.

    Where one of the objective's measures is the text's likelihood and the stream has sizes, each batch has `bytes` (B,): those
    of the text that a row's targets account for, which are all its tokens but the first.

    All ranks get the same number of micro-batches; the last may be smaller. A rank for which nothing is left gets one row
    again, marked as `filler`: it runs the model, because others wait for it where that is sharded, and counts nowhere.
    """
    n = len(windows) if limit is None else min(limit, len(windows))
    return DataLoader(
        HeldOut(windows, objective, n, micro, rank, world),
        batch_size=None,
        sampler=From(0, -(-n // (micro * world))),
        pin_memory=torch.cuda.is_available(),
    )


class From(Sampler[int]):
    """start, start + 1, ... n - 1; its length is n all the same."""

    def __init__(self, start: int, n: int):
        self.start, self.n = start, n

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.n))

    def __len__(self) -> int:
        return self.n


class MicroSteps(Dataset[Batch]):
    """Item i is micro-batch i % accumulate of step i // accumulate."""

    def __init__(
        self,
        windows: Samples,
        objective: Objective,
        seed: int,
        batch_size: int,
        micro: int,
        rank: int,
        world: int,
        accumulate: int,
    ):
        self.windows, self.objective, self.seed = windows, objective, seed
        self.batch_size, self.micro, self.rank, self.world, self.accumulate = batch_size, micro, rank, world, accumulate
        # Where the objective says that every sample has as many targets, no other rank's samples need be prepared.
        self.fixed = attributes.get(objective, "objective", "fixed_counts")
        # Not in the table of attributes: it is made of the objective's options when that is built.
        self.repeats: int = getattr(objective, "repeats", 0)
        self.step = -1
        self.samples: dict[int, Sample] = {}  # of this step, by row
        self.counts: dict[str, int] = {}

    def __getitem__(self, i: int) -> Batch:
        step, j = divmod(i, self.accumulate)
        first = (j * self.world + self.rank) * self.micro
        rows = range(first, first + self.micro)
        # A worker gets micro-batches in turn, so that one may see several of a step, and counts them once.
        if step != self.step:
            self.step, self.samples = step, {}
            self._prepare(rows if self.fixed else range(self.batch_size))
            if self.fixed:
                each = self.objective.targets(self.samples[first])
                self.counts = {name: n * self.batch_size for name, n in each.items()}
            else:
                self.counts = total(self.objective.targets(s) for s in self.samples.values())
        self._prepare([row for row in rows if row not in self.samples])
        batch: Batch = _batch([self.samples[row] for row in rows], self.objective, self.windows)
        # Lightning's move to the device walks dicts within a batch too.
        batch["counts"] = {name: torch.tensor(n) for name, n in self.counts.items()}
        return batch

    def _prepare(self, rows: Sequence[int]) -> None:
        n = len(self.windows)
        positions = self.step * self.batch_size + np.array(rows, dtype=np.int64)
        for row, position, at in zip(rows, positions.tolist(), indices(self.seed, positions, n).tolist(), strict=True):
            # A generator for each sample and epoch: what a sample draws follows neither workers nor the micro-batch
            # size.
            epoch = position // n % self.repeats if self.repeats else position // n
            rng = np.random.default_rng(key(self.seed, "prepare", epoch, at))
            sample = collate.drawn(self.objective, self.windows, at, rng)
            self.samples[row] = collate.prepare(self.objective, sample, rng)


class HeldOut(Dataset[dict[str, Tensor]]):
    """Item i is this rank's piece of the i-th `micro * world` windows. Random choices depend on the window alone."""

    def __init__(self, windows: Samples, objective: Objective, n: int, micro: int, rank: int, world: int):
        self.windows, self.objective, self.n = windows, objective, n
        self.micro, self.rank, self.world = micro, rank, world

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        first = (i * self.world + self.rank) * self.micro
        rows = range(first, min(first + self.micro, self.n))
        if rows:
            return _batch([self._sample(row) for row in rows], self.objective, self.windows)
        # Under FSDP a rank that made no forward would leave the others waiting in an all-gather.
        return {**_batch([self._sample(0)], self.objective, self.windows), "filler": torch.tensor(True)}

    def _sample(self, row: int) -> Sample:
        # Without the run's seed: all seeds and variants are validated on the same masked tokens.
        rng = np.random.default_rng(key("validation", row))
        window: Any = collate.drawn(self.objective, self.windows, row, rng)
        sample = collate.prepare(self.objective, window, rng)
        if measures.covers_text(self.objective) and isinstance(self.windows, Windows) and "sizes" in window:
            # The first token of a window is no target.
            sample["bytes"] = window["sizes"][1:].sum()
        return sample


def total(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """The targets of several samples, by term."""
    found: dict[str, int] = {}
    for each in counts:
        for name, n in each.items():
            found[name] = found.get(name, 0) + n
    return found


def _batch(samples: Sequence[Sample], objective: Objective, windows: Samples) -> Batch:
    """A micro-batch of prepared samples, as the objective wants them collated."""
    how: collate.How = attributes.get(objective, "objective", "collate")
    return {**collate.batch(samples, how, windows.pad, windows.seq_len)}


def _leave_interrupts_to_the_parent(worker: int) -> None:
    # A terminal sends Ctrl-C to all processes at once; a worker that died of it would end the run before its step is saved.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
