"""Memory in use on a device as a step goes on: the ops of a micro-batch, and what a strategy does at each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from llmlab.plan.activations import Op
from llmlab.plan.parameters import Parameter, state_bytes

Part = Literal["weights", "gradients", "states", "strategy", "activations"]
PARTS: tuple[Part, ...] = ("weights", "gradients", "states", "strategy", "activations")


@dataclass(frozen=True)
class Trained:
    """dtype: of the parameters that the model computes with. accumulates: an optimizer step has several micro-batches, of
    which a later one is replayed."""

    parameters: tuple[Parameter, ...]
    optimizer: Any
    dtype: torch.dtype
    accumulates: bool = False

    @property
    def learning(self) -> tuple[Parameter, ...]:
        return tuple(p for p in self.parameters if p.learns)

    @property
    def frozen(self) -> tuple[Parameter, ...]:
        return tuple(p for p in self.parameters if not p.learns)


class Replay:
    """A strategy's memory. `now` and, when most was in use, `peak`: bytes by part. `kept`: activations at the loss.
    `gradients`: at the optimizer step. `host`: bytes in the CPU's memory, with offload."""

    def __init__(self, trained: Trained):
        self.trained = trained
        self.now: dict[Part, int] = dict.fromkeys(PARTS, 0)
        self.peak = dict(self.now)
        self.kept = 0
        self.gradients = 0
        self.host = 0
        self.total = self.highest = 0
        self.history: list[int] = []  # of the total
        self.reached: tuple[Parameter, ...] = ()  # that have gradients
        self.returns: set[int] = set()  # steps whose layers have a backward

    def add(self, part: Part, size: int) -> None:
        self.now[part] += size
        self.total += size
        # The total at every point in time: with more sequences another may be the highest (`memory.most`).
        self.history.append(self.total)
        if self.total > self.highest:
            self.highest, self.peak = self.total, dict(self.now)

    def run(self, ops: Sequence[Op]) -> None:
        # Not all that learn: an optimizer has no state for a head that the loss leaves out.
        reached = {op.param for op in ops if op.kind == "grad"}
        self.reached = tuple(p for i, p in enumerate(self.trained.parameters) if i in reached)
        self.returns = {op.step for op in ops if op.kind == "back"}
        self.begin()
        for op in ops:
            if op.kind == "take":
                self.add("activations", op.size)
            elif op.kind == "free":
                self.add("activations", -op.size)
            else:
                getattr(self, op.kind)(op)
        self.end()
        # Read before the step, as a run frees gradients behind it.
        self.gradients = self.now["gradients"]
        self.step()

    def bytes_of(self, parameter: Parameter) -> int:
        return parameter.numel * self.trained.dtype.itemsize

    # ---------------------------------------------------------------- what a strategy may do otherwise

    def begin(self) -> None:
        """Memory in use before the forward; of a later micro-batch, the gradients of those before it too."""
        self.add("weights", sum(map(self.bytes_of, self.trained.parameters)))
        self.add("states", state_bytes(self.trained.optimizer, self.reached, self.trained.dtype))
        if self.trained.accumulates:
            self.add("gradients", sum(map(self.bytes_of, self.reached)))

    def enter(self, op: Op) -> None: ...
    def leave(self, op: Op) -> None: ...
    def read(self, op: Op) -> None: ...
    def wake(self, op: Op) -> None: ...
    def back(self, op: Op) -> None: ...
    def done(self, op: Op) -> None: ...
    def end(self) -> None: ...
    def step(self) -> None: ...

    def backward(self, op: Op) -> None:
        self.kept = self.now["activations"]

    def grad(self, op: Op) -> None:
        self.add("activations", -op.size)
        if not self.trained.accumulates:
            self.add("gradients", self.bytes_of(self.trained.parameters[op.param]))


class DDP(Replay):
    """Gradients are views of buckets, which are there all the time; but those of micro-batches after which nothing is
    reduced lie beside them."""

    def begin(self) -> None:
        super().begin()
        # gradient_as_bucket_view=True makes p.grad a view of a bucket, but not under no_sync, where autograd makes its own.
        beside = self.trained.accumulates
        self.add("strategy" if beside else "gradients", sum(map(self.bytes_of, self.reached)))

    def grad(self, op: Op) -> None:
        self.add("activations", -op.size)
