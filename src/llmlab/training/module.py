"""The LightningModule of any loss over given examples: it assembles the model and scales the loss; it holds no maths."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import lightning.pytorch as pl
import torch
from torch import Tensor

from llmlab.config.spec import ModelSpec
from llmlab.errors import UserError
from llmlab.model import build, roles
from llmlab.model.experts import MixtureOfExperts
from llmlab.model.model import Model
from llmlab.runs import checkpoint, folder
from llmlab.seeds import key
from llmlab.slots import Objective, OptimizerPart, Schedule
from llmlab.training.placement import Placement
from llmlab.training.step_metrics import Ledger


class Feed(Protocol):
    """The micro-batches of one rank. `train` begins at the optimizer step `start`."""

    def train(self, rank: int, world: int, start: int) -> Any: ...
    def validation(self, rank: int, world: int) -> Any: ...


class Offline(pl.LightningModule):
    """Trains `spec`'s model by `objective.loss`.

    The gradient of an optimizer step is that of (sum over its targets) / (their number), over all micro-batches and
    ranks: each batch bears `step_count`, the targets of the whole step. horizon: optimizer steps of the budget, which the
    schedule spans. clip: gradient norm, or None. counts_bytes: whether a validation gives bits per byte. weights: a
    checkpoint whose weights the model begins with.
    """

    def __init__(
        self,
        spec: ModelSpec,
        objective: Objective,
        optimizer: OptimizerPart,
        schedule: Schedule,
        feed: Feed,
        *,
        seed: int,
        horizon: int,
        clip: float | None = None,
        counts_bytes: bool = False,
        weights: Path | None = None,
        placement: Placement = Placement(),  # noqa: B008  frozen
    ):
        super().__init__()
        self.spec, self.objective, self.optimizer_part, self.schedule = spec, objective, optimizer, schedule
        self.feed, self.seed, self.horizon, self.clip, self.weights = feed, seed, horizon, clip, weights
        self.placement = placement
        self.model: Model | None = None
        self.ledger = Ledger()
        self.micro = 0  # micro-batches done of the current optimizer step
        self.lr = 0.0
        self.validation: dict[str, float] = {}
        self._load: Tensor | None = None
        self.load: Tensor | None = None  # (routed layers, E): tokens of each expert in the last step, over all ranks
        self._val: dict[str, Tensor] = {}
        self.counts_bytes = counts_bytes

    @property
    def strategy(self) -> Any:
        """One of `llmlab.training.strategies`: what it answers is in `strategies.portable`."""
        return self.trainer.strategy

    # ---------------------------------------------------------------- the model

    def configure_model(self) -> None:
        if self.model is not None:
            return
        strategy = self.strategy
        model = strategy.assemble(self.spec)
        self.placement.apply(model)
        strategy.place(model)
        self.model = model
        self.fill()
        if strategy.data_world > 1:
            for module in model.modules():
                if isinstance(module, MixtureOfExperts):
                    module.total = self._total

    def fill(self) -> None:
        """First values, or those of the checkpoint that the model begins with."""
        assert self.model is not None
        build.initialise(self.model, self.seed)
        if self.weights is not None:
            load_weights(self.model, self.weights)

    def _total(self, tensor: Tensor) -> Tensor:
        """The sum over the data-parallel ranks. Each rank's gradient is that of its own summand times their number, so
        that the mean which the strategy takes is the gradient of the sum."""
        world = self.strategy.data_world
        return self.reduce(tensor.detach().clone()) + world * (tensor - tensor.detach())

    def configure_optimizers(self) -> Any:
        assert self.model is not None
        optimizer = self.strategy.build_optimizer(self.optimizer_part, roles.parameters(self.model))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.schedule.factor(step, self.horizon))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # ---------------------------------------------------------------- data

    def train_dataloader(self) -> Any:
        strategy = self.strategy
        return self.feed.train(strategy.data_rank, strategy.data_world, self.trainer.global_step)

    def val_dataloader(self) -> Any:
        return self.feed.validation(self.strategy.data_rank, self.strategy.data_world)

    # ---------------------------------------------------------------- a step

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        micro_step = self.trainer.global_step * self.trainer.accumulate_grad_batches + self.micro
        # Ranks that share the work on the same rows (tensor parallel) draw the same, or their dropout would differ.
        torch.manual_seed(key(self.seed, "step", micro_step, self.strategy.data_rank))

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.objective.loss(self.model, batch)
        targets = torch.as_tensor(batch["step_count"], device=loss.sum.device)
        if loss.aux is not None:  # of all ranks already, so that each adds its share of the mean over micro-batches
            loss = loss._replace(sum=loss.sum + loss.aux * (targets / self._shares))
        self.ledger.add(loss, targets)
        self.micro += 1
        if loss.load is not None:
            self._load = loss.load if self._load is None else self._load + loss.load
        # Lightning divides by the micro-batches of a step and the strategy takes the mean over ranks.
        return loss.sum * (self._shares / targets.clamp(min=1))

    @property
    def _shares(self) -> int:
        """Micro-batches of an optimizer step, over all data-parallel ranks."""
        return self.strategy.data_world * self.trainer.accumulate_grad_batches

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *unused: Any, **unused_too: Any) -> None:
        self.lr = float(optimizer.param_groups[0]["lr"])
        norm = self.strategy.clip(optimizer, self.clip)
        if norm is not None:
            self.ledger.close(norm)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.ledger.open:  # the strategy has clipped in its own step
            self.ledger.close(self.strategy.norm())
        optimizer.zero_grad()  # Lightning does it behind the next forward, when most activations are there too
        self.micro = 0
        if self._load is not None:
            self.load = self.reduce(self._load)
            self._after_step(self.load)
            self._load = None

    def _after_step(self, load: Tensor) -> None:
        """Tell each router how many tokens its experts had in this step."""
        assert self.model is not None
        visits: dict[int, tuple[Any, Tensor]] = {}
        for router, row in zip(self.model.routers(), load, strict=True):
            if hasattr(router, "after_step"):  # a layer that runs twice has two rows
                before = visits.get(id(router))
                visits[id(router)] = (router, row if before is None else before[1] + row)
        for router, row in visits.values():
            router.after_step(row)

    def reduce(self, tensor: Tensor) -> Tensor:
        """The sum over the data-parallel ranks."""
        return self.strategy.sum(tensor)

    # ---------------------------------------------------------------- validation

    def on_validation_epoch_start(self) -> None:
        self._val = {}

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        loss = self.objective.loss(self.model, batch)
        total = loss.sum if loss.aux is None else loss.sum + loss.aux * loss.count
        logs = {"nll": (total, loss.count), **loss.logs}
        sums = {name: torch.stack([t.detach().double() for t in pair]) for name, pair in logs.items()}
        if self.counts_bytes:
            sums["bytes"] = torch.stack([batch["bytes"].sum(), loss.count]).double()
        for name, pair in sums.items():
            self._val[name] = pair if name not in self._val else self._val[name] + pair

    def on_validation_epoch_end(self) -> None:
        """The mean over all targets of all ranks: `self.validation`, by name."""
        if not self._val:  # this rank had no window; there are fewer windows than ranks
            raise UserError("the validation set has fewer windows than trainer.devices; use a larger data.validation")
        names = list(self._val)
        table = self.reduce(torch.stack([self._val[n] for n in names])).tolist()
        totals = dict(zip(names, table, strict=True))
        nll, count = totals["nll"]
        found = {"val_loss": nll / max(count, 1)}
        found["val_perplexity"] = math.exp(min(found["val_loss"], 700.0))
        if totals.get("bytes", [0])[0]:
            found["val_bits_per_byte"] = nll / math.log(2) / totals["bytes"][0]
        for name, (total, n) in totals.items():
            if name not in ("nll", "bytes"):
                found[f"val_{name}"] = total / max(n, 1)
        self.validation = found
        self.log_dict(found)

    # ---------------------------------------------------------------- state

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        strategy = self.strategy
        checkpoint["llmlab"] = {
            "ledger": self.ledger.state(strategy.gather),
            "world": strategy.data_world,
            "accumulate": self.trainer.accumulate_grad_batches,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        strategy = self.strategy
        ours = checkpoint["llmlab"]
        self.ledger.load(ours["ledger"], strategy.data_rank, strategy.data_world)
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):  # of micro-batches; a step may now have more or fewer
            counts.update(
                {k: n * self.trainer.accumulate_grad_batches // ours["accumulate"] for k, n in counts.items()}
            )


def load_weights(model: Model, path: Path) -> None:
    """The weights of a checkpoint into a model, but for heads that only one of them has; UserError naming the first tensors
    that do not fit."""
    if folder.is_foreign(path):
        from llmlab.hub import begin

        weights = begin.weights(path, model)
    else:
        weights = checkpoint.read_weights(path)
    try:
        build.load(model, weights, begins=True)
    except UserError as e:
        raise UserError(f"init_from={path}: {e}") from None
