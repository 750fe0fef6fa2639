"""The LightningModule of any loss over given examples: it assembles the model and scales the loss; it holds no maths."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from llmlab import attributes, measures
from llmlab.config.spec import ModelSpec
from llmlab.errors import UserError
from llmlab.model import batch_keys, build, roles, trainable
from llmlab.model.experts import MixtureOfExperts
from llmlab.model.model import Model
from llmlab.runs.vectors import Rows
from llmlab.seeds import key
from llmlab.slots import Loss, Objective, OptimizerPart, Schedule
from llmlab.training import losses
from llmlab.training.companions import Companion, frozen, load, read_weights, share_frozen, trained_models
from llmlab.training.feeds import Feed
from llmlab.training.gathered import Gathered
from llmlab.training.placement import Placement
from llmlab.training.step_metrics import StepMetrics
from llmlab.training.totals import Totals

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning.pytorch.core.optimizer import LightningOptimizer
    from torch.optim import Optimizer

    from llmlab.training.feeds import Batch
    from llmlab.training.strategies.portable import ByPath


class Offline(pl.LightningModule):
    """Trains `spec`'s model by `objective.loss`.

    The gradient of an optimizer step is that of the sum over the loss's terms of weight x (sum over its targets) / (their
    number), over all micro-batches and ranks: each batch bears `counts`, the targets of the whole step. horizon: optimizer
    steps of the budget, which the schedule spans. clip: gradient norm, or None. counts_bytes: a validation gives bits per
    byte. weights: a checkpoint whose weights the model begins with. adapter: a folder of PEFT's, on them.
    companions: the objective's other models, by role.
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
        adapter: Path | None = None,
        vectors: Rows | None = None,
        placement: Placement = Placement(),  # noqa: B008  frozen
        learns: trainable.Filter = trainable.Filter(),  # noqa: B008  frozen
        companions: Mapping[str, Companion] | None = None,
        text: Callable[[int], str] | None = None,
    ):
        super().__init__()
        self.spec, self.objective, self.optimizer_part, self.schedule = spec, objective, optimizer, schedule
        self.feed, self.seed, self.horizon, self.clip, self.weights = feed, seed, horizon, clip, weights
        self.placement, self.learns, self.vectors, self.text = placement, learns, vectors, text
        self.adapter = adapter
        feed.attach(self)
        self.model: Model | None = None
        self.companions = companions or {}
        self.models = nn.ModuleDict()  # those of the companions, by role
        self.step_metrics = StepMetrics()
        self.micro = 0  # micro-batches done of the current optimizer step
        self.lr = 0.0
        self.validation: dict[str, float] = {}
        self._tokens: dict[str, Tensor] = {}
        self.tokens_per_expert: dict[str, Tensor] = {}  # role -> (routed layers, E), of the last step, over all ranks
        self.measures = measures.kinds(objective)
        self.counts_bytes = counts_bytes
        self._keys_checked = False
        self._totals = Totals(self.measures)

    @property
    def strategy(self) -> ByPath:
        """One of `llmlab.training.strategies`: what it answers is in `strategies.portable`."""
        return cast("ByPath", self.trainer.strategy)

    # ---------------------------------------------------------------- the model

    def configure_model(self) -> None:
        # Lightning calls this before the optimizers are made, with the processes and the mesh in place, and again at each fit.
        if self.model is not None:
            return
        strategy = self.strategy
        model = strategy.assemble(self.spec)
        # Before anything is sharded: FSDP2 and tensor parallelism make parameters anew, and take over
        # what requires_grad was.
        self.learns.apply(model)
        self.model = self._placed(model)
        for role, companion in self.companions.items():
            shared = companion.shared(self.model)
            model = frozen(strategy.assemble(companion.spec, shared), companion)
            if strategy.whole:  # a sharded parameter is gathered for the module that it was sharded with
                share_frozen(model, self.model, companion)
            self._placed(model)
            if any(shared):
                strategy.share(self.model, model)
            self.models[role] = model
        self.fill()
        if strategy.data_world > 1 and attributes.get(self.objective, "objective", "joint"):
            self.objective.gather = self._gather  # type: ignore[attr-defined]
        # A balance loss is not linear in tokens: of counts of one rank alone it would be another with
        # each number of ranks.
        if strategy.data_world > 1:
            for module in self.modules():
                if isinstance(module, MixtureOfExperts):
                    module.total = self._total

    def _placed(self, model: Model) -> Model:
        self.placement.apply(model)
        self.strategy.distribute(model)
        return model

    def fill(self) -> None:
        """First values of all models, or those of the vectors and the checkpoints that they begin with."""
        assert self.model is not None
        build.initialise(self.model, self.seed, rows=self.vectors)
        if self.text is not None:
            build.spell(self.model, self.text)
        if self.weights is not None:
            weights = read_weights(self.weights, self.model, self.adapter)
            load(self.model, weights, f"init_from={self.weights}", begins=True)
        for role, companion in self.companions.items():
            companion.fill(cast(Model, self.models[role]), self.seed, self.vectors)
            if self.text is not None and all(
                at is None for at in (companion.start, companion.trunk, companion.weights)
            ):
                build.spell(self.models[role], self.text)

    def on_train_start(self) -> None:
        for role, companion in self.companions.items():
            self.models[role].train(companion.trains)  # a strategy may have set the mode of all that it was given

    @property
    def others(self) -> dict[str, Model]:
        """The companions that the objective works with, by role."""
        return self._companions(judges=False)

    @property
    def judges(self) -> dict[str, Model]:
        """Those that the reward works with."""
        return self._companions(judges=True)

    def _companions(self, judges: bool) -> dict[str, Model]:
        chosen = (role for role, c in self.companions.items() if c.declared.judges == judges)
        return {role: cast(Model, self.models[role]) for role in chosen}

    @property
    def trained(self) -> nn.Module:
        """All that checkpoints and the optimizer are of."""
        assert self.model is not None
        return trained_models(self.model, self.models, self.companions)  # type: ignore[arg-type]

    def _total(self, tensor: Tensor) -> Tensor:
        """The sum over the data-parallel ranks. Each rank's gradient is that of its own summand times their number, so
        that the mean which the strategy takes is the gradient of the sum."""
        world = self.strategy.data_world
        # Cloned, since Lightning's reduce is in place (`_sync_ddp`).
        return self.reduce(tensor.detach().clone()) + world * (tensor - tensor.detach())

    def _gather(self, rows: Tensor) -> tuple[Tensor, int]:
        """(the rows of all data-parallel ranks, (ranks x B, ...) in their order, with gradients from each to each; the number
        of this one's first)."""
        rank, world = self.strategy.data_rank, self.strategy.data_world
        return Gathered.apply(rows, rank, world, self.reduce), rank * len(rows)

    def configure_optimizers(self) -> Any:
        optimizer = self.strategy.build_optimizer(self.optimizer_part, roles.learning(self.trained))
        # LambdaLR multiplies the rate that each group began with, so that parts with several groups keep their ratios.
        # A plain function: LambdaLR's state has None for it, but for a callable object its
        # `__dict__`, whatever is in there.
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.schedule.factor(step, self.horizon))
        # By optimizer step; Lightning's default is by epoch, of which a run has one.
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # ---------------------------------------------------------------- data

    def train_dataloader(self) -> Any:
        strategy = self.strategy
        return self.feed.train(strategy.data_rank, strategy.data_world, self.trainer.global_step)

    def val_dataloader(self) -> Any:
        return self.feed.validation(self.strategy.data_rank, self.strategy.data_world)

    # ---------------------------------------------------------------- a step

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        micro_step = self.trainer.global_step * self.trainer.accumulate_grad_batches + self.micro
        # Ranks that share the work on the same rows (tensor parallel) draw the same, or their dropout would differ.
        # Lightning 2.6 calls this hook behind the fetch of the batch: what a feed draws does not move
        # a layer's dropout.
        torch.manual_seed(key(self.seed, "step", micro_step, self.strategy.data_rank))

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        loss = self._loss(batch)
        counts = self._counts(loss, batch)
        self.step_metrics.widen(loss.shown)
        if self.step_metrics.names:
            losses.same_names(type(self.objective).__name__, self.step_metrics.names, loss.shown)
        self.step_metrics.add(loss.sums(counts, self._shares), counts, loss.shown)
        self.micro += 1
        for role, aux in loss.aux.items():
            if (tokens := aux.tokens_per_expert) is not None:
                # Not in place: the first tensor is still the loss's own.
                self._tokens[role] = tokens if role not in self._tokens else self._tokens[role] + tokens
        # Lightning divides by the micro-batches of a step and the strategy takes the mean over ranks.
        mean = loss.mean(counts, self._shares)
        if not mean.requires_grad:
            name = type(self.objective).__name__
            raise UserError(f"{name}.loss has no gradient: none of its terms depends on a parameter that learns")
        return mean

    def _loss(self, batch: Mapping[str, Any]) -> Loss:
        """The objective's loss, as it must be. Of the first batch it is seen whether all of its keys are read and all measures
        are there."""
        assert self.model is not None
        watched = batch if self._keys_checked else batch_keys.Watched(batch)
        others = self.others
        loss = self.objective.loss(self.model, watched, **others)
        losses.check(loss, self.objective, others)
        loss = losses.with_shown(loss, batch)
        if isinstance(watched, batch_keys.Watched):  # once: watching costs a call a key, and batches are alike
            batch_keys.check(watched, self.objective)
            losses.check_shown(loss, self.objective, self.counts_bytes)
            measures.check(loss.shown, self.objective)
            self._keys_checked = True
        return loss

    def _counts(self, loss: Loss, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The targets of each term in the whole optimizer step."""
        known: Mapping[str, Tensor] | None = batch.get("counts")
        local = loss.counts
        if known is None:
            if self.trainer.accumulate_grad_batches > 1:
                raise UserError(
                    "micro-batches without `counts` can't be accumulated: the feed must say a step's targets"
                )
            summed = self.reduce(torch.stack([count.detach().long() for count in local.values()]))
            return dict(zip(local, summed.unbind(), strict=True))
        if known.keys() != local.keys():
            name = type(self.objective).__name__
            raise UserError(f"{name}.targets counts {', '.join(known)}, but its loss has the terms {', '.join(local)}")
        return {name: torch.as_tensor(known[name], device=count.device) for name, count in local.items()}

    @property
    def _shares(self) -> int:
        """Micro-batches of an optimizer step, over all data-parallel ranks."""
        return self.strategy.data_world * self.trainer.accumulate_grad_batches

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, *unused: object, **unused_too: object
    ) -> None:
        # Lightning calls this between the last backward and the step, so that the rate is the one that the step uses. The
        # values of Trainer(gradient_clip_val=) come too, and are not ours.
        self.lr = float(optimizer.param_groups[0]["lr"])
        norm = self.strategy.clip(optimizer, self.clip)
        if norm is not None:
            self.step_metrics.close(norm)
            # Of answers of which none is better than another. Asked here alone, as it waits for the device.
            if hasattr(self.objective, "rollout"):
                self.strategy.forgo(optimizer, norm)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        # The closure runs the micro-batch's forward and backward in here: Lightning has the optimizer call it.
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.step_metrics.open:  # the strategy has clipped in its own step
            self.step_metrics.close(self.strategy.norm())
        optimizer.zero_grad()  # Lightning does it behind the next forward, when most activations are there too
        self.micro = 0
        # Once a step and not for each micro-batch: routers learn of their load at the step only.
        self.tokens_per_expert = {role: self.reduce(tokens) for role, tokens in self._tokens.items()}
        self._tokens = {}
        for role, tokens in self.tokens_per_expert.items():
            model = self.model if role == "model" else self.models[role]
            self._after_step(cast(Model, model), tokens)

    def _after_step(self, model: Model, tokens_per_expert: Tensor) -> None:
        """Tell each router how many tokens its experts had in this step."""
        visits: dict[int, tuple[Any, Tensor]] = {}
        for router, row in zip(model.routers(), tokens_per_expert, strict=True):
            # A frozen router's balancing bias is a buffer, but moving it would send tokens elsewhere: it stays as well.
            if hasattr(router, "after_step") and trainable.learns(router):  # a layer that runs twice has two rows
                before = visits.get(id(router))
                visits[id(router)] = (router, row if before is None else before[1] + row)
        for router, row in visits.values():
            router.after_step(row)

    def reduce(self, tensor: Tensor) -> Tensor:
        """The sum over the data-parallel ranks."""
        return self.strategy.sum(tensor)

    # ---------------------------------------------------------------- validation

    def on_validation_epoch_start(self) -> None:
        self._totals = Totals(self.measures)

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        loss = self._loss(batch)
        if self._totals.names:
            losses.same_names(type(self.objective).__name__, self._totals.names, loss.shown)
        self._totals.add(loss, batch)

    def on_validation_epoch_end(self) -> None:
        """The means over all targets of all ranks: `self.validation`, by name."""
        if not self._totals.pairs:  # this rank had no window; there are fewer windows than ranks
            raise UserError("the validation set has fewer windows than trainer.devices; use a larger data.validation")
        self.validation = {f"val_{name}": value for name, value in self._totals.means(self.reduce).items()}
        # For callbacks of the user's (early stopping, say) in trainer.callback_metrics; metrics.csv is written by Journal.
        self.log_dict(self.validation)

    def validation_names(self) -> list[str]:
        """Names of what a validation gives, known once a step was trained."""
        terms, shown = self.step_metrics.terms, self.step_metrics.names
        return [f"val_{name}" for name in measures.names(terms, shown, self.measures, self.counts_bytes)]

    # ---------------------------------------------------------------- state

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        strategy = self.strategy
        checkpoint["llmlab"] = {
            "step_metrics": self.step_metrics.state(strategy.gather),
            "world": strategy.data_world,
            "accumulate": self.trainer.accumulate_grad_batches,
        }
        if state := self.feed.state(self.trainer.global_step):
            checkpoint["llmlab"]["feed"] = state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        strategy = self.strategy
        ours = checkpoint["llmlab"]
        rows = ours["ledger"] if "ledger" in ours else ours["step_metrics"]  # as checkpoints of before called them
        self.step_metrics.load(rows, strategy.data_rank, strategy.data_world)
        self.feed.load(ours.get("feed", {}))
        # Lightning takes as many micro-batches for done as its own counter says, and validates by it.
        # Changed in place: Lightning restores its loops from this very dict, after the module
        # (`restore_training_state`).
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):  # of micro-batches; a step may now have more or fewer
            # Where Lightning saves at the end of a batch, `completed` is one behind `processed`; it looks for just that
            # difference when it goes on (restarted_on_train_batch_end), else the first step would lack micro-batches.
            done = counts["processed"]
            now = done * self.trainer.accumulate_grad_batches // ours["accumulate"]
            counts.update({k: now + n - done for k, n in counts.items()})
