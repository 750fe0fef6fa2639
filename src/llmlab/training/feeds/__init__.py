"""Feeds: where the micro-batches of a run come from, a dataset or the model itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from llmlab.model.model import Model
from llmlab.runs.answers import Judged

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from llmlab.training.strategies.portable import ByPath

Batch = dict[str, Any]  # tensors, and the dict of `counts`


class Learner(Protocol):
    """The module that is fed, as its feed sees it."""

    model: Model | None
    trainer: pl.Trainer

    @property
    def others(self) -> dict[str, Model]: ...  # companions of the objective, by role
    @property
    def judges(self) -> dict[str, Model]: ...  # and of the reward
    @property
    def strategy(self) -> ByPath: ...
    @property
    def device(self) -> torch.device: ...


class Feed:
    """The micro-batches of one rank, in sized iterables: Lightning asks one without a length for a batch ahead of its time.

    Each bears `counts`, targets of the whole optimizer step by term, where that is known before it is run. Where a step is
    one micro-batch a rank it may be left out; the module then adds the counts up over ranks.

    A feed keeps no state unless `state` gives one, which a checkpoint then holds: plain values and whole CPU tensors, the
    same on every rank.
    """

    judged: Sequence[Judged] = ()  # some answers of the last validation, of a feed whose model writes

    def attach(self, module: Learner) -> None:
        """Called before anything else, with the module that is fed."""

    def train(self, rank: int, world: int, start: int) -> Iterable[Batch]:
        """Micro-batches of the optimizer steps from `start` to the last; as long as all of the run, wherever it starts."""
        raise NotImplementedError

    def validation(self, rank: int, world: int) -> Iterable[Batch]:
        """Micro-batches of a validation, as many for each rank."""
        raise NotImplementedError

    def state(self, step: int) -> dict[str, Any]:
        """State with which a run goes on after `step` optimizer steps; {}: none is needed."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
