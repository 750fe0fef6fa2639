"""`llmlab train`: a run from its config to its closing panel."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmlab import files
from llmlab.config import data_keys
from llmlab.errors import UserError
from llmlab.ranks import is_first, rank_zero_print
from llmlab.runs import checkpoint, lock, record, settings
from llmlab.runs import files as run_files
from llmlab.runs import folder as run_folder
from llmlab.training.task import Task, intact, resume_command, typed
from llmlab.training.task import last_step as task_last_step

if TYPE_CHECKING:
    from llmlab.config.composed import Composed
    from llmlab.training.callbacks import Journal
    from llmlab.training.cut import Cut
    from llmlab.training.devices import Devices
    from llmlab.training.recipe import Recipe


def train(composed: Composed, folder: str | Path | None = None) -> Mapping[str, Any]:
    """Train what `composed` says; returns the record of the run (run.json).

    folder: the run folder; None: Hydra's output directory. With `resume=RUN` the run in RUN goes on, under its own config.
    UserError with the reason where it fails; KeyboardInterrupt where it was interrupted, after the last step was saved.
    """
    from hydra.core.hydra_config import HydraConfig

    from llmlab.training import reopen

    # Not the current folder: with hydra.job.chdir=false, as conf/config.yaml has it, Hydra stays where it was called.
    folder = Path(HydraConfig.get().runtime.output_dir if folder is None else folder)
    first = is_first()
    if composed.cfg.resume:
        # Hydra has made a folder for this command, which writes into the run's own.
        if first and folder.resolve() != Path(composed.cfg.resume).resolve():
            _remove_if_empty(folder)
        done = record.read(composed.cfg.resume)
        task = reopen.resumed_task(composed, done)
        if task is None:
            return done
    else:
        data_keys.require_source(composed)
        task = Task(composed, folder, {})
        if first and (folder / record.NAME).exists():
            kept = checkpoint.all_of(folder / checkpoint.FOLDER)
            how = " goes on with it" if kept else " resume_from=start begins it again"
            raise UserError(
                f"{folder} holds a run already; {typed('resume', folder)}{how}, or choose another hydra.run.dir"
            )
    try:
        return _train(task, first)
    # KeyboardInterrupt and SystemExit too: a record must not say for ever that the run goes on.
    except BaseException as e:
        unwritten = isinstance(e, UserError) and isinstance(e.__cause__, OSError) and "intact" not in str(e)
        if unwritten and checkpoint.all_of(task.folder / checkpoint.FOLDER):
            whole = UserError(f"{e}; {intact(task.folder)}")
            whole.__cause__ = e.__cause__
            e = whole
        if first:
            _end(task.folder, e)
        raise e


def _end(folder: Path, error: BaseException) -> None:
    """Leave no folder that says nothing, nor a record that says that the run goes on."""
    _remove_if_empty(folder)
    try:
        fields = record.read(folder)
    except UserError:  # none yet, or what ended the run has damaged it
        fields = {}
    if fields.get("status") == "running":
        how = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        if how == "interrupted":
            reason = "Ctrl-C"
            rank_zero_print(f"interrupted before the first step; begin again with: {resume_command(folder)}")
        record.Record(folder, fields).update(status=how, reason=reason.splitlines()[0])
    lock.unlock(folder)


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
        for parent in folder.absolute().parents:  # those that Hydra made for it, as runs/DATE
            if Path.cwd() not in parent.parents:
                break
            parent.rmdir()
    except OSError:
        pass


def _train(task: Task, first: bool) -> Mapping[str, Any]:
    from llmlab.runs import vectors
    from llmlab.training import batch_size, companions, loggers, preflight, run_header, strategies, trainers
    from llmlab.training import recipe as recipes
    from llmlab.training.feeds import make
    from llmlab.training.intervals import Intervals
    from llmlab.training.meter import peak_memory

    began = time.time()
    devices = trainers.find_devices(task.composed.cfg)
    trainers.check_parts(task.composed, devices)
    typed_cut = recipes.Cut.of(task.composed.cfg, devices.data_parallel)  # before any data is prepared
    recipe = recipes.Recipe.from_config(task.composed, task.spec, task.corpus, task.companions)
    fits: tuple[str, ...] = ()
    if not task.resumes:
        composed, fits = batch_size.fitted(task.composed, recipe.samples, devices.data_parallel)
        task = dataclasses.replace(task, composed=composed)
    cfg = task.composed.cfg
    cut = recipes.Cut.of(cfg, devices.data_parallel) if fits else typed_cut
    # Made once to refuse a corpus that is too small before anything is written.
    make.feed(cfg, recipe, cut, 1)
    strategies.check(cfg, devices, recipe.spec)
    for role, companion in recipe.companions.items():
        with companions.naming_role(role):
            strategies.check(cfg, devices, companion.spec)
    weights = None
    if cfg.init_from and task.point is None:
        weights = run_folder.start_of(cfg.init_from, tokenizer=cfg.init_tokenizer != "new")
    preflight.check(cfg, recipe, devices, weights)
    rows = None
    if cfg.init_embedding and task.point is None:
        rows = vectors.begin(cfg.init_embedding, recipe.corpus.tokenizer)
        preflight.vectors_fit(cfg.init_embedding, rows, recipe.model)
    adapter = None if cfg.init_adapter is None else files.expanded(cfg.init_adapter).absolute()
    begun, notes = companions.begun(recipe.companions, weights, recipe.model, adapter)
    recipe = dataclasses.replace(recipe, companions=begun)
    heads = preflight.heads_begun(weights, recipe.spec, recipe.corpus.labels)
    if rows is not None:
        notes = (*notes, run_header.vectors_note(cfg.init_embedding, rows, recipe))
    task = dataclasses.replace(task, notes=(*fits, *heads, *notes))
    horizon = _horizon(task, recipe, cut, devices, first)
    last_step = task_last_step(cfg, horizon["steps"])
    step_tokens = cut.batch_size * recipe.tokens_per_sample
    held_out = trainers.held_out(cfg, recipe, cut)
    intervals = Intervals.from_config(cfg.train, held_out, step_tokens, horizon["steps"], task.record)

    if first:
        task.folder.mkdir(parents=True, exist_ok=True)
        # Before a file is written: two commands with one hydra.run.dir would write into each other's run.
        lock.lock(task.folder)
        files.sweep(task.folder, but=("point.json",))
    run = record.Record(task.folder, task.record, writes=first)
    if not task.resumes:
        if first:
            others = {role: companion.spec for role, companion in recipe.companions.items()}
            run_folder.save(task.folder, settings.absolute(cfg), recipe.spec, others)
            recipe.corpus.tokenizer.save(task.folder)
        run.update(**run_header.fields(task, recipe, horizon, last_step, devices, cut, intervals))
        if rows is not None:
            run.update(init_embedding=run_header.vectors(cfg.init_embedding, rows, recipe))
        run.update(files=run_files.hashes(task.folder) if first else {})
        for line in run_header.lines(task, recipe, horizon, last_step, cut, intervals):
            rank_zero_print(line)
    before = run.get("wall_seconds") or 0.0  # of the parts of a run that was interrupted
    run.update(status="running", reason=None, resumed=run.get("resumed", 0) + int(task.resumes))
    run.update(**run_header.where(cfg, devices, cut))
    _restore_threads(task, devices)

    module, trainer, journal = trainers.make(
        task, recipe, cut, devices, horizon["steps"], last_step, weights, intervals, rows
    )
    if first:
        every = intervals.validate_every
        journal.loggers = loggers.make_loggers(task, recipe, validate_every=every, horizon=horizon["steps"])
        journal.loggers.begin(run, cfg, rank_zero_print)

    def progress() -> dict[str, Any]:
        meter = journal.meter
        steps = max(trainer.global_step, run.get("steps", 0))
        return {
            "steps": steps,
            "tokens_seen": steps * journal.tokens_per_step,
            "wall_seconds": round(before + time.time() - began, 3),
            "tokens_per_second": (meter and meter.tokens_per_second) or run.get("tokens_per_second"),
            "peak_memory_bytes": max(peak_memory(devices.device), run.get("peak_memory_bytes") or 0),
            "metrics": {**run.get("metrics", {}), **_metrics(journal)},
        }

    try:
        trainers.fit(module, trainer, task.point)
    except trainers.Stopped as e:
        journal.progress.close()
        reason = e.reason if e.hint != "disk" else e.advice(task.folder, cfg)
        try:
            run.update(status=e.status, reason=reason, **progress())
        except UserError as unwritten:  # a disk that takes nothing at all: why the run ended is said all the same
            print(f"warning: {unwritten}", file=sys.stderr)
        journal.loggers.end(run)
        lock.unlock(task.folder)
        if e.status == "interrupted":
            at = f" at step {e.step:,}, which is saved" if e.step else ""
            rank_zero_print(f"interrupted{at}; go on with: {resume_command(task.folder)}")
            if e.step:
                _destroy_process_group()
                # Lightning's observer kills the first rank with SIGKILL within 5 s where another ends with an exit code
                # (`_ChildProcessObserver`), and that may still write.
                if not first:
                    return run.fields
            raise KeyboardInterrupt from e
        raise UserError(e.advice(task.folder, cfg)) from e.__cause__
    journal.progress.close()
    _destroy_process_group()
    if not first:
        return run.fields
    from llmlab.training.finish import complete

    try:
        complete(run, progress(), task.folder, cfg, recipe, module, devices, journal.loggers)
    except OSError as e:
        what = f"{e.filename or task.folder} could not be written: {e.strerror or e}"
        raise UserError(f"the run is at its end, but {what}; {intact(task.folder)}") from e
    lock.unlock(task.folder)
    return run.fields


def _destroy_process_group() -> None:
    """The ranks have nothing more to say to each other."""
    import torch

    # Without it NCCL warns at exit of what it still holds, and a rank that ends first makes gloo fail in the others.
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _horizon(task: Task, recipe: Recipe, cut: Cut, devices: Devices, first: bool) -> dict[str, Any]:
    """The budget in steps. Measured minutes are measured once, by the first process; the others read what it found."""
    from llmlab.training.budget import horizon
    from llmlab.training.trainers import measured_tokens

    cfg = task.composed.cfg
    if task.resumes:
        return task.record["budget"]
    if not first and cfg.budget.minutes is not None:
        return _budget_of_first(task.folder)
    found = horizon(
        cfg.budget,
        cut.batch_size * recipe.tokens_per_sample,
        recipe.cost.flops_per_token,
        lambda minutes: measured_tokens(minutes, cfg, recipe, cut, devices),
    )
    if found.unit == "minutes":
        rank_zero_print(f"budget.minutes={found.amount:g} is {found.tokens:,} tokens on this machine")
    return found._asdict()


def _budget_of_first(folder: Path, seconds: float = 600.0) -> dict[str, Any]:
    """The budget that the first process writes once it has measured.

    Lightning starts the other processes after that; torchrun and srun start all at once.
    """
    until = time.monotonic() + seconds
    while not (folder / record.NAME).exists():
        if time.monotonic() > until:
            raise UserError(f"{folder}: the first process has written no {record.NAME} in {seconds:g} s")
        time.sleep(0.1)
    return record.read(folder)["budget"]


def _metrics(journal: Journal) -> dict[str, float]:
    values = dict(journal.final)
    if journal.loss is not None:
        values["loss"] = journal.loss
    return values


def _restore_threads(task: Task, devices: Devices) -> None:
    """The number of threads decides the order of sums, so a resumed run takes the one that it began with."""
    import torch

    if not task.resumes or devices.device.type != "cpu" or devices.world > 1:
        return
    threads = task.record["hardware"]["threads"]
    if threads != torch.get_num_threads():
        rank_zero_print(f"note: the run began with {threads} threads; taking as many, not {torch.get_num_threads()}")
        torch.set_num_threads(threads)
