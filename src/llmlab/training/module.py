"""The LightningModule of any loss over given examples: it assembles the model and scales the loss; it holds no maths."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import lightning.pytorch as pl
import torch
from torch import Tensor

from llmlab.errors import UserError
from llmlab.model import build, roles
from llmlab.model.layout import ModelSpec
from llmlab.model.model import Model
from llmlab.seeds import key
from llmlab.slots import Objective, OptimizerPart, Schedule
from llmlab.training import checkpoint
from llmlab.training.clipping import clip_by_norm
from llmlab.training.ledger import Ledger


class Feed(Protocol):
    """The micro-batches of one rank. `train` begins at the optimizer step `start`."""

    def train(self, rank: int, world: int, start: int) -> Any: ...
    def validation(self, rank: int, world: int) -> Any: ...


class Offline(pl.LightningModule):
    """Trains `spec`'s model by `objective.loss`.

    The gradient of an optimizer step is that of (sum over its targets) / (their number), over all micro-batches and
    ranks: each batch bears `step_count`, the targets of the whole step. horizon: optimizer steps of the budget, which the
    schedule spans. clip: gradient norm, or None. token_bytes (V,): for bits per byte, or None. weights: a checkpoint
    whose weights the model begins with.
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
        token_bytes: Tensor | None = None,
        weights: Path | None = None,
    ):
        super().__init__()
        self.spec, self.objective, self.optimizer_part, self.schedule = spec, objective, optimizer, schedule
        self.feed, self.seed, self.horizon, self.clip, self.weights = feed, seed, horizon, clip, weights
        self.model: Model | None = None
        self.ledger = Ledger()
        self.micro = 0  # micro-batches done of the current optimizer step
        self.lr = 0.0
        self.validation: dict[str, float] = {}
        self._load: Tensor | None = None
        self._val: dict[str, Tensor] = {}
        self._token_bytes = token_bytes

    # ---------------------------------------------------------------- the model

    def configure_model(self) -> None:
        if self.model is not None:
            return
        model = build.assemble(self.spec)
        build.materialise(model, "cpu")
        build.initialise(model, self.seed)
        if self.weights is not None:
            load_weights(model, self.weights)
        self.model = model

    def configure_optimizers(self) -> Any:
        assert self.model is not None
        optimizer = self.optimizer_part.build(roles.parameters(self.model))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.schedule.factor(step, self.horizon))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # ---------------------------------------------------------------- data

    def train_dataloader(self) -> Any:
        return self.feed.train(self.global_rank, self.trainer.world_size, self.trainer.global_step)

    def val_dataloader(self) -> Any:
        return self.feed.validation(self.global_rank, self.trainer.world_size)

    # ---------------------------------------------------------------- a step

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        micro_step = self.trainer.global_step * self.trainer.accumulate_grad_batches + self.micro
        torch.manual_seed(key(self.seed, "step", micro_step, self.global_rank))

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.objective.loss(self.model, batch)
        targets = torch.as_tensor(batch["step_count"], device=loss.sum.device)
        self.ledger.add(loss, targets)
        self.micro += 1
        if loss.load is not None:
            self._load = loss.load if self._load is None else self._load + loss.load
        # Lightning divides by the micro-batches of a step and the strategy takes the mean over ranks.
        return loss.sum * (self.trainer.world_size * self.trainer.accumulate_grad_batches / targets.clamp(min=1))

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *unused: Any, **unused_too: Any) -> None:
        self.lr = float(optimizer.param_groups[0]["lr"])
        self.ledger.close(clip_by_norm([p for g in optimizer.param_groups for p in g["params"]], self.clip))

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.micro = 0
        if self._load is not None:
            self._after_step(self.reduce(self._load))
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

    @property
    def counts_bytes(self) -> bool:
        return self._token_bytes is not None

    def reduce(self, tensor: Tensor) -> Tensor:
        """The sum over ranks."""
        return self.trainer.strategy.reduce(tensor, reduce_op="sum")

    # ---------------------------------------------------------------- validation

    def on_validation_epoch_start(self) -> None:
        self._val = {}

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        loss = self.objective.loss(self.model, batch)
        logs = {"nll": (loss.sum, loss.count), **loss.logs}
        sums = {name: torch.stack([t.detach().double() for t in pair]) for name, pair in logs.items()}
        if self._token_bytes is not None:
            labels = batch["labels"]
            self._token_bytes = self._token_bytes.to(labels.device)
            bytes_of = self._token_bytes[labels.clamp(min=0)].masked_fill(labels < 0, 0).sum()
            sums["bytes"] = torch.stack([bytes_of, loss.count]).double()
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
        gather: Callable[[Tensor], Tensor] = self.trainer.strategy.all_gather
        if self.trainer.world_size == 1:
            gather = lambda t: t[None]  # noqa: E731
        checkpoint["llmlab"] = {"ledger": self.ledger.state(gather), "world": self.trainer.world_size}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.ledger.load(checkpoint["llmlab"]["ledger"], self.global_rank, self.trainer.world_size)


def load_weights(model: Model, path: Path) -> None:
    """The weights of a checkpoint into a model; UserError naming the first tensors that do not fit."""
    weights, own = checkpoint.read_weights(path), model.state_dict()
    wrong = [f"{n} is missing there" for n in own if n not in weights]
    wrong += [f"{n} is not in this model" for n in weights if n not in own]
    wrong += [
        f"{n} is {tuple(weights[n].shape)} there and {tuple(own[n].shape)} here"
        for n in own
        if n in weights and weights[n].shape != own[n].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"init_from: the weights in {path} do not fit this model: {'; '.join(wrong[:3])}{more}")
    model.load_state_dict(weights)
