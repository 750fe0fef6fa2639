"""`resume=RUN`: a run folder as the task of going on with it; nothing in it is written before it is known to be sound."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from llmlab import files
from llmlab.config import learned, schema
from llmlab.data.corpus import Corpus
from llmlab.errors import UserError
from llmlab.json_files import check_shape
from llmlab.ranks import is_first, rank_zero_print
from llmlab.runs import checkpoint, lock, metrics, record, text
from llmlab.runs import files as run_files
from llmlab.runs import folder as run_folder
from llmlab.training import companion_records, recipe
from llmlab.training.callbacks import resume_point
from llmlab.training.task import MAY_CHANGE, Task, last_step, steps_text, typed

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from llmlab.config.composed import Composed

BRING_BACK = "bring it back from a copy of the run, or remove it"


class Steps(TypedDict):
    steps: int


class Threads(TypedDict):
    threads: int


class Parameters(TypedDict):
    total: int
    active: int


class Needed(TypedDict):
    """Fields without which a run can't go on."""

    overrides: list[str]
    budget: Steps
    hardware: Threads
    steps: int
    parameters: Parameters
    flops_per_token: float


def resumed_task(composed: Composed, done: dict[str, Any]) -> Task | None:
    """The task of going on with a run, or None if it has nothing left to do. UserError where it can't be gone on with."""
    folder = Path(composed.cfg.resume)
    if done.get("status") in ("failed", "interrupted") and not (folder / run_files.CONFIG).exists():
        raise UserError(
            f"{folder}: the run ended before it began to train ({done.get('reason')}); type its command again"
        )
    _checked(done, folder / record.NAME)
    cfg, spec = run_folder.load(folder)
    run_folder.assembled(folder, spec)
    _change(cfg, composed, done, folder)
    target = last_step(cfg, done["budget"]["steps"])
    complete = done["status"] == "completed" and done["steps"] >= target
    moved = any(o.startswith("data.path=") for o in composed.overrides)
    names = (*run_files.TOKENIZER, *run_files.BESIDE)
    asked = moved or composed.cfg.resume_from is not None
    if complete and not asked and not run_files.damaged(folder, names, done):
        rank_zero_print(_complete(folder, done, target))
        return None
    for name in (metrics.METRICS, metrics.TIMING):
        if os.path.lexists(folder / name) and not (folder / name).is_file():
            raise UserError(f"{folder / name} is no ordinary file; {BRING_BACK}")
        try:
            # Before the record is written anew: a run that is refused leaves its folder as it was.
            metrics.check(folder / name)
        except UserError as e:
            raise UserError(f"{e}; {BRING_BACK}") from None
    data, tokenizer = recipe.as_dataclass(cfg.data, schema.Data), recipe.as_dataclass(cfg.tokenizer, schema.Tokenizer)
    kind, filters = learned.reads(cfg), recipe.filters(cfg)
    trained = text.Trained(folder, data, tokenizer, recipe.special(cfg), done, kind, filters)
    first = is_first()
    if first:
        # Before anything in it is judged or deleted: another process may be writing there.
        lock.lock(folder)
    try:
        if first:
            # The sweep writes point.json while this process begins.
            files.sweep(folder, but=("point.json",))
            checkpoint.sweep(folder / checkpoint.FOLDER)
            for line in text.repair(trained):
                print(f"warning: {line}", file=sys.stderr)
        corpus = _corpus(trained)
        if complete and composed.cfg.resume_from is None:
            if first:
                _remember(folder, cfg, done, corpus)
                lock.unlock(folder)
            rank_zero_print(_complete(folder, done, target))
            return None
        point = _point(folder, composed.cfg.resume_from, done, first)
        models = {role: str(value) for role, value in composed.cfg.models.items()}
        others = companion_records.reopened(folder, done, models, begins=point is None)
        fields = {**done, **_since(point), **companion_records.places(done, others)}
        if first:
            _remember(folder, cfg, fields, corpus)
    except BaseException:
        lock.unlock(folder)
        raise
    rank_zero_print(f"resuming {folder} from {f'step {checkpoint.step_of(point):,}' if point else 'the beginning'}")
    return Task(dataclasses.replace(composed, cfg=cfg), folder, fields, spec, others, corpus, point)


def _checked(done: dict[str, Any], path: Path) -> None:
    check_shape(done, Needed, str(path))
    if done.get("status") not in lock.STATUSES:
        raise UserError(f"{path}: status must be one of {', '.join(lock.STATUSES)}, but is {done.get('status')}")
    least = {
        "budget.steps": done["budget"]["steps"],
        "hardware.threads": done["hardware"]["threads"],
        "steps": done["steps"],
    }
    for key, value in least.items():
        # A step count of 0 is that of a run which ended before its first; budgets and threads begin at 1.
        if not (key != "steps") <= value < 1 << 40:
            raise UserError(f"{path}: {key}={value} can't be meant")


def _change(cfg: DictConfig, composed: Composed, done: Mapping[str, Any], folder: Path) -> None:
    """Into the run's config what was typed and may be another than it was."""
    from omegaconf import OmegaConf

    for override in composed.overrides:
        key, _, _ = override.lstrip("+~").partition("=")
        if key in ("resume", "resume_from") or key.startswith("hydra.") or override in done["overrides"]:
            continue
        if key.startswith("models."):  # where a finished model lies now: that it is the same, its weights' sha256 tells
            about = (done.get("models") or {}).get(key.removeprefix("models."))
            if about is not None and about["source"] is not None and isinstance(composed.cfg.models[key[7:]], str):
                continue
        if key not in MAY_CHANGE and not key.startswith("logger."):
            raise UserError(
                f"{override}: a resumed run keeps its own config (only {', '.join(MAY_CHANGE)} may change); "
                f"init_from={folder} starts a new run from its weights"
            )
        OmegaConf.update(cfg, key, OmegaConf.select(composed.cfg, key))
        if key == "data.path":
            if cfg.data.source != "files":
                raise UserError(f"{override}: the run was trained on data={cfg.data.source}, which has no path")
            cfg.data.path = files.absolute(str(cfg.data.path))
            done.get("data", {}).pop("path", None)  # this one is looked at instead
    if cfg.data.source == "files" and (moved := done.get("data", {}).get("path")):
        # An earlier resume found the data here; config.yaml is written once and does not know of it.
        cfg.data.path = moved


def _complete(folder: Path, done: Mapping[str, Any], target: int) -> str:
    line = f"{folder} is complete: {steps_text(done['steps'])}"
    if max(target, done["steps"]) < done["budget"]["steps"]:
        again = f"{typed('resume', folder)} trainer.max_steps=-1"
        line += f" of a budget of {done['budget']['steps']:,}; {again} goes on to its end"
    return line


def _corpus(run: text.Trained) -> Corpus:
    advice = (
        f"bring it back as it was, or say where it lies now with data.path=PATH; init_from={run.folder} begins a new run "
        "with the weights of this one on another text"
    )
    return text.corpus(run, advice)


def _point(folder: Path, start: str | None, done: Mapping[str, Any], first: bool) -> Path | None:
    """The checkpoint to go on from; None where there is none and `start` says to begin again. UserError otherwise."""
    at = folder / checkpoint.FOLDER
    if start is not None and not first:
        return None  # the first process has judged
    why: list[str] = []
    point = resume_point(at, why.append)
    for line in why:
        if point is not None or start is not None:
            print(f"warning: {line}", file=sys.stderr)
    if start is None and point is None:
        again = f"{typed('resume', folder)} resume_from=start begins it again, and its metrics with it"
        if why:
            what = f"none of its {len(why)} checkpoints is sound" if len(why) > 1 else "its one checkpoint is not sound"
            raise UserError(f"{folder}: {what} ({'; '.join(why)}), so there is nothing to go on from; {again}")
        reached = max(done["steps"], metrics.last_step(folder / metrics.METRICS))
        after = (
            f"after {steps_text(reached)} of {done['budget']['steps']:,}"
            if reached
            else "before its first row of metrics"
        )
        raise UserError(f"{folder}: it ended {after} without a checkpoint, so there is nothing to go on from; {again}")
    if start is not None and point is not None:
        raise UserError(
            f"resume_from={start}: {folder} can go on from step {checkpoint.step_of(point):,}; leave it out, or begin "
            "another run with the same command"
        )
    if point is None:
        for path in checkpoint.all_of(at):
            checkpoint.remove(path)
    return point


def _since(point: Path | None) -> dict[str, Any]:
    """Fields of the record that are of the steps which are done again."""
    if point is None:
        return {"steps": 0, "tokens_seen": 0, "wall_seconds": 0.0, "metrics": {}}
    return {"steps": checkpoint.step_of(point)}


def _remember(folder: Path, cfg: DictConfig, fields: dict[str, Any], corpus: Corpus) -> None:
    """Writes what older records lack, where the text lies now, and that the run had died, should it be refused yet."""
    fields.setdefault("files", run_files.hashes(folder))
    fields["data"] = {**fields.get("data", {}), **text.fields(corpus, cfg)}
    record.Record(folder, fields).update()
