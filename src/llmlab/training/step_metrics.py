"""What is kept of each optimizer step until it is logged: sums and counts on the device, no transfer a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llmlab.slots import Loss


class Summary(NamedTuple):
    """The steps since the last summary, over all ranks: loss of each step, gradient norm of each, means of what was logged."""

    losses: list[float]
    norms: list[float]
    logs: dict[str, float]

    @property
    def loss(self) -> float:
        return sum(self.losses) / len(self.losses)


class Ledger:
    """Adds up micro-batches, then steps. `reduce` sums a tensor over ranks.

    A row a step: local sum of the loss, targets of the whole step, gradient norm, then (sum, count) of each name logged.
    """

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.rows: list[Tensor] = []
        self._micro: list[Tensor] = []
        self._targets: Tensor | None = None

    def add(self, loss: Loss, targets: Tensor) -> None:
        """One micro-batch. targets: those of the whole optimizer step."""
        self.names = tuple(loss.logs)
        pairs = [t for pair in loss.logs.values() for t in pair]
        self._micro.append(torch.stack([t.detach().double() for t in (loss.sum, *pairs)]))
        self._targets = targets

    def close(self, norm: Tensor) -> None:
        """The optimizer step is done."""
        assert self._targets is not None
        micro = self._micro[0] if len(self._micro) == 1 else torch.stack(self._micro).sum(0)
        own = torch.stack([self._targets.to(micro), norm.detach().to(micro)])
        self.rows.append(torch.cat([micro[:1], own, micro[1:]]))
        self._micro = []

    @property
    def open(self) -> bool:
        """Whether micro-batches of a step are added up that is not closed."""
        return bool(self._micro)

    def __len__(self) -> int:
        return len(self.rows)

    def peek(self, reduce: Callable[[Tensor], Tensor]) -> Summary:
        """One transfer from the device."""
        table = torch.stack(self.rows)
        summed = torch.cat([table[:, :1], table[:, 3:]], 1)
        summed = reduce(summed.clone())
        losses = summed[:, 0] / table[:, 1].clamp(min=1)
        pairs = summed[:, 1:].sum(0).view(-1, 2)
        means = pairs[:, 0] / pairs[:, 1].clamp(min=1)
        flat = torch.cat([losses, table[:, 2], means]).tolist()
        n = len(self.rows)
        return Summary(flat[:n], flat[n : 2 * n], dict(zip(self.names, flat[2 * n :], strict=True)))

    def flush(self, reduce: Callable[[Tensor], Tensor]) -> Summary:
        summary = self.peek(reduce)
        self.rows = []
        return summary

    def state(self, gather: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """Of all ranks. `gather`: a tensor of each rank -> (world, ...)."""
        if not self.rows:
            return {"names": list(self.names), "rows": None}
        return {"names": list(self.names), "rows": gather(torch.stack(self.rows)).cpu()}

    def load(self, state: Mapping[str, Any], rank: int, world: int) -> None:
        self.names = tuple(state["names"])
        rows = state["rows"]
        if rows is None:
            self.rows = []
            return
        if len(rows) == world:
            mine = rows[rank]
        else:  # another number of ranks: the first takes the sums of all
            mine = rows[0].clone()
            summed = [0, *range(3, rows.shape[-1])]
            mine[:, summed] = rows.sum(0)[:, summed] if rank == 0 else 0.0
        self.rows = list(mine.unbind(0))
