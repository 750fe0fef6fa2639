"""The Lightning Trainer of a run: where it computes, with which callbacks, and how it ends."""

from __future__ import annotations

import gc
import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from llmlab import files
from llmlab.errors import UserError
from llmlab.ranks import is_first
from llmlab.runs import answers, checkpoint, metrics, signals
from llmlab.training import placement, strategies
from llmlab.training.devices import Devices as Devices
from llmlab.training.devices import check_parts as check_parts
from llmlab.training.devices import find_devices as find_devices
from llmlab.training.interrupt import Interrupt, Interrupted
from llmlab.training.intervals import Intervals, every, trained, validations
from llmlab.training.task import intact

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import Callback
    from omegaconf import DictConfig

    from llmlab.runs.vectors import Rows
    from llmlab.training.callbacks import Journal
    from llmlab.training.cut import Cut
    from llmlab.training.module import Offline
    from llmlab.training.recipe import Recipe
    from llmlab.training.task import Task


OURS = ("accelerator", "devices", "num_nodes", "max_steps", "enable_progress_bar")
QUIET = {"enable_model_summary": False, "num_sanity_val_steps": 0}  # unless the user typed them


def make(
    task: Task,
    recipe: Recipe,
    cut: Cut,
    devices: Devices,
    horizon: int,
    last_step: int,
    weights: Path | None,
    intervals: Intervals,
    vectors: Rows | None = None,
) -> tuple[Offline, pl.Trainer, Journal]:
    """(module, trainer, journal)."""
    import lightning.pytorch as pl
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from llmlab.config.trainer import arguments
    from llmlab.training import recipe as recipes
    from llmlab.training.callbacks import Checkpoints, Journal
    from llmlab.training.feeds import make as feeds
    from llmlab.training.module import Offline
    from llmlab.training.progress import Progress, Remaining
    from llmlab.training.warning_filters import hush

    hush()
    cfg, folder = task.composed.cfg, task.folder
    t = cfg.train
    validate_every = intervals.validate_every
    log_every = every("train.log_every", t.log_every, 10)
    if task.resumes and is_first():
        step = checkpoint.step_of(task.point) if task.point else 0
        _cut_metrics(folder, step, validated=step % validate_every == 0)

    feed = feeds.feed(cfg, recipe, cut, horizon)
    module = Offline(
        recipe.spec,
        recipe.objective,
        recipe.optimizer,
        recipe.schedule,
        feed,
        seed=cfg.seed,
        horizon=horizon,
        clip=t.clip,
        counts_bytes=recipes.counts_bytes(recipe.corpus, recipe.objective),
        weights=weights,
        adapter=None if cfg.init_adapter is None else files.expanded(cfg.init_adapter).absolute(),
        vectors=vectors,
        placement=placement.Placement.from_config(cfg),
        companions=recipe.companions,
        learns=recipe.learns,
        text=recipe.corpus.vocabulary.text,
    )
    progress = Progress(last_step, enabled=is_first() and cfg.trainer.enable_progress_bar is not False)
    tokens_per_step = cut.batch_size * recipe.tokens_per_sample
    remaining = Remaining(last_step, tokens_per_step, intervals)
    bounds = {name: bound for name in ("kl", "loss") if (bound := cfg.train[f"stop_{name}"]) is not None}
    journal = Journal(folder, progress, remaining, log_every=log_every, tokens_per_step=tokens_per_step, bounds=bounds)
    interrupt = Interrupt(devices.world)
    saves = Checkpoints(
        folder / checkpoint.FOLDER,
        journal,
        interrupt,
        every=intervals.checkpoint_every,
        keep=t.keep,
        validate_every=validate_every,
    )
    extra = {k: v for k, v in cfg.trainer.items() if k not in OURS and v != arguments()[k][1]}
    try:
        trainer = pl.Trainer(
            accelerator=devices.accelerator,
            devices=devices.world // devices.nodes,
            num_nodes=devices.nodes,
            strategy=strategies.make(cfg, devices),
            # precision= or a plugin: Lightning refuses both together, even where they agree.
            **placement.precision(cfg),
            max_steps=last_step,
            max_epochs=-1,  # one endless epoch: the budget alone ends a run
            accumulate_grad_batches=cut.accumulate,
            # Lightning counts micro-batches here; those of the whole run where the interval of epochs is None, and else
            # those of the epoch.
            val_check_interval=validate_every * cut.accumulate,
            check_val_every_n_epoch=None,
            # 0 switches validation off; the feed limits it otherwise, in samples, and not in micro-batches of a rank.
            limit_val_batches=0 if t.validation_batches == 0 else None,
            # Lightning would put a DistributedSampler under the loader, which takes a share of the
            # share that the feed gives this rank.
            use_distributed_sampler=False,
            # True by default: a logger of Lightning's own, which makes a folder lightning_logs.
            logger=False,
            # True by default: a ModelCheckpoint beside ours.
            enable_checkpointing=False,
            enable_progress_bar=False,
            # Called in this order: the row of a validation is written before the checkpoint behind it is saved.
            callbacks=[journal, saves],
            default_root_dir=str(folder),
            # `extra` behind QUIET: what the user typed goes before.
            **{**QUIET, **extra},
        )
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as e:
        raise UserError(f"trainer: {str(e).splitlines()[0]}") from e
    return module, trainer, journal


def _cut_metrics(folder: Path, step: int, *, validated: bool) -> None:
    """Rows that a run wrote behind the checkpoint that it goes on from are written again."""
    metrics.cut(folder / metrics.METRICS, step, keep_validation=validated)
    metrics.cut(folder / metrics.TIMING, step, keep_validation=True)
    answers.cut(folder, step, keep_validation=validated)


def held_out(cfg: DictConfig, recipe: Recipe, cut: Cut) -> int:
    """Tokens of one validation."""
    if recipe.reward is not None:
        prompts = recipe.corpus.validation.count
        return min(prompts, (cfg.train.validation_batches or prompts) * cut.batch_size) * recipe.tokens_per_sample
    stream, batches = recipe.corpus.validation, cfg.train.validation_batches
    return len(stream) if batches is None else min(len(stream), batches * cut.batch_size * recipe.tokens_per_sample)


def measured_tokens(minutes: float, cfg: DictConfig, recipe: Recipe, cut: Cut, devices: Devices) -> float:
    """Tokens that this machine trains on in so many minutes, of which validations take their part."""
    from llmlab.training import recipe as recipes
    from llmlab.training import throughput

    tokens, typed = held_out(cfg, recipe, cut), cfg.train.validate_every

    def count(trained: float) -> float:
        if typed is None:
            return validations(trained, tokens)
        return math.ceil(trained / (max(1, typed) * cut.batch_size * recipe.tokens_per_sample))

    return throughput.tokens_in(
        minutes,
        recipe.spec,
        recipe.objective,
        recipe.optimizer,
        recipes.Batches.from_config(cfg, recipe, cut, throughput.STEPS),
        precision=cfg.precision,
        placement=placement.Placement.from_config(cfg),
        device=devices.device,
        learns=recipe.learns,
        companions=recipe.companions,
        trains=lambda total: trained(total, tokens, count),
    )


class Stopped(Exception):
    """A run that did not reach its end. status: failed or interrupted."""

    def __init__(self, status: str, reason: str, *, step: int | None = None, hint: str = ""):
        super().__init__(reason)
        self.status, self.reason, self.step, self.hint = status, reason, step, hint

    def advice(self, folder: Path, cfg: DictConfig) -> str:
        if self.hint == "disk" and "is intact" not in self.reason:
            return f"{self.reason}; {intact(folder)}"
        if self.hint != "diverged":
            return self.reason
        kept = checkpoint.all_of(folder / checkpoint.FOLDER)
        last = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint before it"
        lr = cfg.optimizer.get("lr")
        clip = "train.clip=1" if cfg.train.clip is None else f"a smaller train.clip (it is {cfg.train.clip:g})"
        return (
            f"{self.reason}; {last}. Try a lower optimizer.lr (it is {lr:g}), a longer schedule.warmup_share, or {clip}"
        )


def fit(module: Offline, trainer: pl.Trainer, point: Path | None) -> None:
    """Train to the end; Stopped, with the error as its cause, where it ends before."""
    from llmlab.training.callbacks import Checkpoints
    from llmlab.training.guard import Diverged

    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by one of its connectors
    interrupt = next(c for c in callbacks if isinstance(c, Checkpoints)).interrupt
    # Python's collector looks at all objects again and again while torch and Lightning are imported; what is there now is
    # never garbage, so it is left out of every later collection.
    # Only where the command line has raised it: what is imported by now stays.
    if gc.get_threshold()[0] >= 100_000:
        gc.freeze()
        # The thresholds of Python 3.11 as it starts.
        gc.set_threshold(700, 10, 10)
    try:
        with interrupt:
            # weights_only: Lightning hands it on to the strategy. Ours never unpickles, whatever it is told.
            trainer.fit(module, ckpt_path=None if point is None else str(point), weights_only=True)
    except Interrupted as e:
        raise Stopped("interrupted", signals.name(e.signum), step=e.step) from e
    except (
        KeyboardInterrupt,
        SystemExit,
    ) as e:  # Lightning turns the first into sys.exit(1)
        raise Stopped("interrupted", signals.name(interrupt.asked)) from e
    except Diverged as e:
        raise Stopped("failed", str(e), hint="diverged") from e
    except UserError as e:
        raise Stopped("failed", str(e), hint="disk" if isinstance(e.__cause__, OSError) else "") from e
    except torch.OutOfMemoryError as e:
        # Raised for the GPU alone: the CPU's allocator raises a plain RuntimeError, which is told by its words below.
        raise Stopped("failed", "out of memory; lower train.micro_batch_size (the batch stays as it is)") from e
    except Exception as e:
        # c10's DefaultCPUAllocator says so in a RuntimeError (torch 2.13).
        if "can't allocate memory" in str(e):
            raise Stopped("failed", "out of memory; lower train.micro_batch_size (the batch stays as it is)") from e
        if isinstance(e, OSError) and e.errno is not None and e.filename is not None:
            raise Stopped("failed", f"{e.filename} could not be written: {e.strerror}", hint="disk") from e
        # Gloo's words where another rank has closed its connection: it has no exception of its own.
        if "by peer" in str(e):
            raise Stopped("failed", "another process of this run has ended; it may have said why") from e
        raise Stopped("failed", f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}") from e
