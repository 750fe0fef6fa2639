"""Callbacks around the steps of a run: rows of metrics, the guard, progress, checkpoints, Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from llmlab import measures
from llmlab.runs import answers, checkpoint
from llmlab.runs.metrics import METRICS, TIMING, Table, last_seconds
from llmlab.training import guard
from llmlab.training.interrupt import Interrupt, Interrupted
from llmlab.training.loggers import Loggers
from llmlab.training.meter import Meter
from llmlab.training.module import Offline
from llmlab.training.progress import Progress, Remaining


class Journal(Callback):
    """A row of metrics.csv at the first optimizer step, every `log_every` and at each validation; stops a run that diverged."""

    def __init__(
        self,
        folder: Path,
        progress: Progress,
        remaining: Remaining,
        *,
        log_every: int,
        tokens_per_step: int,
        bounds: Mapping[str, float],
    ):
        self.metrics, self.timing = Table(folder / METRICS), Table(folder / TIMING)
        self.progress, self.remaining = progress, remaining
        self.log_every, self.tokens_per_step, self.bounds = log_every, tokens_per_step, bounds
        self.initial: float | None = None  # loss of the run's first step
        self.loss: float | None = None  # the last logged
        self.reward: float | None = None  # the same, of a method that draws answers
        self.final: dict[str, float] = {}  # the last validation
        self.meter: Meter | None = None
        self.loggers = Loggers()
        # A checkpoint holds no times, so that equal runs have equal ones: a resumed run goes on from its last row's.
        self.began, self.before = time.perf_counter(), last_seconds(self.metrics.path)

    @property
    def seconds(self) -> float:
        """Wall-clock time since training began."""
        return round(self.before + time.perf_counter() - self.began, 3)

    # Lightning keeps it in a checkpoint under the callback's class name, and gives it back before training begins.
    def state_dict(self) -> dict[str, Any]:
        return {"initial": self.initial, "final": self.final}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.initial, self.final = state["initial"], state["final"]

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.began = time.perf_counter()
        self.meter = Meter(self.tokens_per_step, trainer.global_step, trainer.max_steps)
        # A run too short for a warm-up: no batch ends at the step where it begins.
        if self.meter.begin == trainer.global_step:
            self.meter.start(trainer.global_step, module.device)

    # Called for every micro-batch; `micro` is 0 again where an optimizer step ended.
    def on_train_batch_end(self, trainer: pl.Trainer, module: Offline, *unused: object) -> None:  # type: ignore[override]
        if module.micro:
            return
        step, meter = (
            trainer.global_step,
            self.meter,
        )  # Lightning's step counts optimizer steps, and is that after this one
        assert meter is not None
        if step == meter.begin:
            meter.start(step, module.device)
        if step == 1 or step % self.log_every == 0:
            self.train_row(trainer, module, step)
        left = self.remaining.seconds(step, meter.recent)
        self.progress.update(step, self.loss, meter.recent, left, reward=self.reward)
        if step >= trainer.max_steps:
            # Lightning then validates once more before it ends. At max_steps alone it would just stop.
            trainer.should_stop = True

    def train_row(self, trainer: pl.Trainer, module: Offline, step: int) -> None:
        summary = module.step_metrics.flush(module.reduce)
        self.initial = guard.check(summary, step, self.initial, scaled=scaled(trainer))
        guard.within(summary, step, self.bounds)
        self.loss, self.reward = summary.loss, summary.logs.get("reward")
        meter = self.meter
        assert meter is not None
        meter.mark(step)
        if trainer.is_global_zero:
            row = {"loss": summary.loss, "lr": module.lr, "grad_norm": summary.norms[-1], **summary.logs}
            speed = {"tokens_per_second": round(meter.recent, 1)} if meter.recent else {}
            self.row(module, step, row, speed)
            if speed:
                self.timing.write({"step": step, **speed}, ["step", *speed])
            assert module.model is not None
            if (tokens := module.tokens_per_expert.get("model")) is not None:
                self.loggers.load(step, module.model, tokens)

    def row(
        self, module: Offline, step: int, values: dict[str, float], untabled: dict[str, float] | None = None
    ) -> None:
        """untabled: for loggers only, which have clocks of their own; `seconds` is what the table has for one."""
        names = ["loss", "lr", "grad_norm", *module.step_metrics.names]
        tokens = step * self.tokens_per_step
        columns = ["step", "tokens", *names, *module.validation_names(), "seconds"]
        self.metrics.write({"step": step, "tokens": tokens, **values, "seconds": self.seconds}, columns)
        self.loggers.row(step, tokens, {**values, **(untabled or {})})

    def check(self, module: Offline, step: int) -> None:
        """Diverged if a step since the last row is no number, without making a row of them."""
        if len(module.step_metrics):
            summary = module.step_metrics.peek(module.reduce)
            self.initial = guard.check(summary, step, self.initial, exploding=False, scaled=scaled(module.trainer))
            guard.within(summary, step, self.bounds)

    def on_validation_start(self, trainer: pl.Trainer, module: Offline) -> None:  # type: ignore[override]
        if self.meter is not None:
            self.check(module, trainer.global_step)
            self.meter.mark(trainer.global_step)
            self.meter.pause()

    def on_validation_end(self, trainer: pl.Trainer, module: Offline) -> None:  # type: ignore[override]
        # Where the user typed trainer.num_sanity_val_steps: Lightning runs these batches through the
        # same hooks, before step 1.
        if trainer.sanity_checking:
            return
        step = trainer.global_step
        self.final = dict(module.validation)
        if self.meter is not None:
            self.loggers.sample(step, module)
            self.remaining.validated(self.meter.go())
        if trainer.is_global_zero:
            self.row(module, step, self.final)
            if judged := module.feed.judged[: answers.SHOWN]:
                answers.append(self.metrics.path.parent, step, judged)
                self.loggers.answers(step, judged)
            self.progress.say("  ".join([f"step {step:,}", *measures.words(self.final)]))


def scaled(trainer: pl.Trainer) -> bool:
    """True if losses are scaled, so that a step may be skipped."""
    return getattr(trainer.strategy, "scaler", None) is not None


class Checkpoints(Callback):
    """Saves every `every` optimizer steps, after a validation that is due, at the end, and when interrupted.

    Lightning's own callback is not used: after a resume in mid-accumulation it saves over a good checkpoint.
    """

    def __init__(
        self, folder: Path, journal: Journal, interrupt: Interrupt, *, every: int, keep: int, validate_every: int
    ):
        self.folder, self.journal, self.interrupt = folder, journal, interrupt
        # Two at least: the newest may turn out damaged.
        self.every, self.keep, self.validate_every = every, max(keep, 2), validate_every
        self.last = -1  # step of the last save, or of the checkpoint that was resumed

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.last = trainer.global_step
        self.interrupt.begin()
        if trainer.is_global_zero:
            checkpoint.sweep(self.folder)

    def on_train_end(self, *unused: object) -> None:
        self.interrupt.end()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Offline, *unused: object) -> None:  # type: ignore[override]
        step = trainer.global_step
        if module.micro or self._validation_follows(trainer, step):
            # A checkpoint before the validation would make a resumed run skip it: Lightning 2.6 takes one that is due
            # at the restored batch for done (`increment_progress_to_evaluation_end`).
            return
        self._maybe(trainer, module, step)

    def on_validation_end(self, trainer: pl.Trainer, module: Offline) -> None:  # type: ignore[override]
        if not trainer.sanity_checking and not module.micro:
            self._maybe(trainer, module, trainer.global_step)

    def _validation_follows(self, trainer: pl.Trainer, step: int) -> bool:
        due = bool(self.validate_every) and step % self.validate_every == 0
        # should_stop too: Lightning then validates before it ends (`_should_check_val_fx`).
        return bool(trainer.limit_val_batches) and (due or step >= trainer.max_steps or trainer.should_stop)

    def _maybe(self, trainer: pl.Trainer, module: Offline, step: int) -> None:
        last = step >= trainer.max_steps or trainer.should_stop  # the latter by another callback, trainer.max_time
        asked = self.interrupt.poll()
        due = step % self.every == 0 or last or asked
        if due and step != self.last:
            self._save(trainer, module, step)
        if asked:
            # An exception, not should_stop, behind which Lightning would validate once more before it ends.
            raise Interrupted(step, asked)

    def _save(self, trainer: pl.Trainer, module: Offline, step: int) -> None:
        journal = self.journal
        # Before the save: what has diverged must not push out the last good checkpoint.
        journal.check(module, step)
        if journal.meter is not None:
            journal.meter.mark(step)
            journal.meter.pause()
        if trainer.is_global_zero:
            # So that no checkpoint is newer than the rows that led to it, should the machine go down.
            journal.metrics.sync()
        self.last = step
        # On all ranks: sharded tensors are gathered by all, though only the first writes.
        trainer.save_checkpoint(self.folder / checkpoint.name(step))
        if trainer.is_global_zero:
            # Only behind the save, so that there is a checkpoint at every moment.
            for old in checkpoint.all_of(self.folder)[: -self.keep]:
                checkpoint.remove(old)
        if journal.meter is not None:
            journal.remaining.saved(journal.meter.go())


def resume_point(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest sound checkpoint of a run; damaged newer ones are named and deleted, as the run will write them anew."""
    newest = checkpoint.latest(folder, warn)
    for path in checkpoint.all_of(folder):
        if newest is not None and checkpoint.step_of(path) > checkpoint.step_of(newest):
            checkpoint.remove(path)
    return newest
