"""Sums and counts of each optimizer step, kept on the device until they are logged: no transfer a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llmlab.errors import UserError


class Summary(NamedTuple):
    """The steps since the last summary, over all ranks: loss of each step, gradient norm of each, means of what was logged."""

    losses: list[float]
    norms: list[float]
    logs: dict[str, float]

    @property
    def loss(self) -> float:
        return sum(self.losses) / len(self.losses)


class StepMetrics:
    """Adds up micro-batches, then steps. `reduce` sums a tensor over ranks.

    A row a step: local weighted sum of each term, its targets in the whole step, gradient norm, then (sum, count) of each
    name that is shown. Checkpoints hold rows, so their order is a format: with one term it is that of the first versions.
    """

    def __init__(self) -> None:
        self.terms: tuple[str, ...] = ()
        self.names: tuple[str, ...] = ()
        self.rows: list[Tensor] = []
        self._micro: list[Tensor] = []
        self._loaded = False  # from a checkpoint, which an earlier version may have written
        self._counts: list[Tensor] = []

    def add(
        self, sums: Mapping[str, Tensor], counts: Mapping[str, Tensor], shown: Mapping[str, tuple[Tensor, Tensor]]
    ) -> None:
        """One micro-batch: weighted sums of its terms, their targets in the whole optimizer step, and (sum, count) of what is
        shown."""
        if {*self.names} != {*shown} or {*self.terms} != {*sums}:  # else in the order of the rows that there are
            self.terms, self.names = tuple(sums), tuple(shown)
        pairs = [t for name in self.names for t in shown[name]]
        weighted = [sums[name] for name in self.terms]
        # float64: sums over micro-batches and ranks then round below what a float32 loss has, in whatever order they are.
        self._micro.append(torch.stack([t.detach().double() for t in (*weighted, *pairs)]))
        # Counts are of the whole step, so that those of any micro-batch do.
        self._counts = [counts[name] for name in self.terms]

    def widen(self, shown: Collection[str]) -> None:
        """Take names that came since the checkpoint was written: its rows have a sum and a count of 0 of them."""
        if not self._loaded:
            return
        self._loaded = False
        more = tuple(name for name in shown if name not in self.names) if self.names else ()
        self.names += more
        self.rows = [torch.cat([row, row.new_zeros(2 * len(more))]) for row in self.rows]

    def close(self, norm: Tensor) -> None:
        """End the optimizer step."""
        assert self._counts
        micro = self._micro[0] if len(self._micro) == 1 else torch.stack(self._micro).sum(0)
        shared = torch.stack([*(count.to(micro) for count in self._counts), norm.detach().to(micro)])
        n = len(self.terms)
        self.rows.append(torch.cat([micro[:n], shared, micro[n:]]))
        self._micro = []

    @property
    def open(self) -> bool:
        """True if micro-batches of a step are added up that is not closed."""
        return bool(self._micro)

    def __len__(self) -> int:
        return len(self.rows)

    def peek(self, reduce: Callable[[Tensor], Tensor]) -> Summary:
        """One transfer from the device. UserError if a term's loss had other targets than were counted for its steps."""
        table = torch.stack(self.rows)
        n = len(self.terms)
        summed = torch.cat([table[:, :n], table[:, 2 * n + 1 :]], 1)
        summed = reduce(
            summed.clone()
        )  # all_reduce writes into its argument, and `peek` must leave the rows as they are
        counted = table[:, n : 2 * n]
        # Where nothing was counted the sum is 0 too.
        losses = (summed[:, :n] / counted.clamp(min=1)).sum(1)
        pairs = summed[:, n:].sum(0).view(-1, 2)
        means = pairs[:, 0] / pairs[:, 1].clamp(min=1)
        # One .tolist() for all: each transfer waits for the device.
        each = [losses, table[:, 2 * n], means, pairs[:, 1], counted.sum(0)]
        flat = torch.cat(each).tolist()
        of_losses, norms, logs, own, stated = ([flat.pop(0) for _ in part] for part in each)
        _same_counts(dict(zip(self.terms, stated, strict=True)), dict(zip(self.names, own, strict=True)))
        return Summary(of_losses, norms, dict(zip(self.names, logs, strict=True)))

    def flush(self, reduce: Callable[[Tensor], Tensor]) -> Summary:
        summary = self.peek(reduce)
        self.rows = []
        return summary

    def state(self, gather: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """Rows of all ranks. `gather`: a tensor of each rank -> (world, ...)."""
        names = {"terms": list(self.terms), "names": list(self.names)}
        return {**names, "rows": gather(torch.stack(self.rows)).cpu() if self.rows else None}

    def load(self, state: Mapping[str, Any], rank: int, world: int) -> None:
        self.names, self._loaded = tuple(state["names"]), True
        self.terms = tuple(state.get("terms", self.names[:1]))  # a checkpoint of before there were several has one
        rows = state["rows"]
        if rows is None:
            self.rows = []
            return
        if len(rows) == world:
            mine = rows[rank]
        else:  # another number of ranks: the first takes the sums of all
            mine, n = rows[0].clone(), len(self.terms)
            summed = [*range(n), *range(2 * n + 1, rows.shape[-1])]
            mine[:, summed] = rows.sum(0)[:, summed] if rank == 0 else 0.0
        self.rows = list(mine.unbind(0))


def _same_counts(stated: Mapping[str, float], own: Mapping[str, float]) -> None:
    """UserError if `targets`, by which a term was divided, and the loss differ in their number. It is seen here as it takes a
    sum over micro-batches and ranks, and a transfer."""
    for name, n in stated.items():
        if name in own and not math.isclose(own[name], n, rel_tol=1e-9):
            raise UserError(
                f"the term {name!r} of the objective has {own[name]:,g} targets by its `loss` and {n:,g} by its `targets`, in "
                "the same optimizer steps; they must be as many"
            )
