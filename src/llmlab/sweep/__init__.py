"""`llmlab train -m`: a grid of runs, or a search, each run a process of its own.

The same command lands in the same folders: it skips what is complete, goes on with what was interrupted, and runs again
what failed.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from llmlab import files
from llmlab.config.spelling import quoted
from llmlab.errors import UserError
from llmlab.files import write_atomic
from llmlab.runs import lock, record, signals
from llmlab.sweep import plan as plans
from llmlab.sweep import point as points
from llmlab.sweep.board import Board

SCHEMA = 1
Launch = Callable[[Sequence[str], Any], Any]


def run(overrides: Sequence[str], folders: Sequence[str], launch: Launch, report: Callable[[Path], None]) -> int:
    """Run a sweep; 0 if every point is complete, 1 if some failed, 130 if it was stopped. UserError before any begins.

    launch(overrides, task): Hydra's multirun with `task` for each point. report(folder) writes the verdict of what ran.
    """
    plan = plans.make(overrides, folders)
    how = {p.folder: points.standing(plan.folder / p.folder, p.hash) for p in plan.points}
    began = time.time()
    with _held(plan):
        write_atomic(plan.folder / points.SWEEP, json.dumps(_record(plan), indent=1) + "\n")
        invocation = uuid.uuid4().hex
        print(_opening(plan, how), flush=True)
        done = {name for name, what in how.items() if what == "complete"}
        broken: Exception | None = None
        with Board(plan, invocation, done) as board, _stoppable(plan, invocation, board) as stopped:
            try:
                if len(done) < plan.total:
                    own = [o for o in plan.own if not o.startswith("hydra.sweep.dir=")]
                    place = f"hydra.sweep.dir={quoted(str(plan.folder))}"
                    typed = ["+" * (o.partition("=")[0] in plan.opened) + o for o in plan.handed]
                    with _as_checked(plan):
                        launch([*typed, *own, *plan.defaults, place], _runner(plan, folders, invocation))
            except UserError:
                raise
            except Exception as e:  # a launcher or a sweeper; the points that ran have their records
                broken = e
        return _end(plan, folders, began, bool(stopped), broken, report)


def _runner(plan: plans.Plan, folders: Sequence[str], invocation: str) -> points.Runner:
    names = [f"{name}_NUM_THREADS" for name in points.THREADS]
    return points.Runner(
        name=plan.name,
        folder=str(plan.folder),
        keys=tuple(plan.keys),
        opened=plan.opened,
        hashes={p.folder: p.hash for p in plan.points},
        config_dirs=tuple(folders),
        invocation=invocation,
        main=os.getpid(),
        threads=max(1, plans.cores_here() // plan.jobs) if plan.jobs > 1 else None,
        environment={name: os.environ[name] for name in names if name in os.environ},
        jobs=plan.jobs if plan.gpus else 1,
        gpus=plan.gpus,
    )


def _record(plan: plans.Plan) -> dict[str, Any]:
    """sweep.json. What an earlier sweep of the same name has run stays in it."""
    fields: dict[str, Any] = {
        "schema": SCHEMA,
        "name": plan.name,
        "command": record.command(),
        "overrides": list(plan.typed),
        "keys": {key: list(values) for key, values in plan.keys.items()},
        "fixed": list(plan.fixed),
        "points": [{"folder": p.folder, "overrides": list(p.overrides), "hash": p.hash} for p in plan.points],
    }
    try:
        before = points.read_sweep(plan.folder)
    except FileNotFoundError:
        return fields
    except UserError as e:
        raise UserError(f"{e}; delete it, or choose another sweep=NAME") from None
    for key, values in before["keys"].items():
        mine = fields["keys"].setdefault(key, [])
        mine += [v for v in values if v not in mine]
    mine = {p["folder"] for p in fields["points"]}
    fields["points"] += [
        p for p in before["points"] if p["folder"] not in mine and (plan.folder / p["folder"] / record.NAME).exists()
    ]
    return fields


def _opening(plan: plans.Plan, how: dict[str, str]) -> str:
    shape = " x ".join(f"{len(v)} {k}" if v else k for k, v in plan.keys.items())
    line = f"sweep {plan.name}: {plan.total} point{'s' * (plan.total != 1)}" + (f" ({shape})" if shape else "")
    counts = [list(how.values()).count(what) for what in ("complete", "resume", "again")]
    known = [f"{n} {what}" for n, what in zip(counts, ("complete", "to go on with", "to run again"), strict=True) if n]
    return f"{line} in {record.shown(plan.folder)}" + (f": {', '.join(known)}" if known else "")


@contextmanager
def _as_checked(plan: plans.Plan) -> Iterator[None]:
    """Within, Hydra's sweepers do not compose all points once more before the first begins, a quarter of a second each,
    and what optuna says of each trial is left to the board."""
    from hydra.plugins.sweeper import Sweeper

    logging.getLogger("hydra_plugins").setLevel(logging.ERROR)  # "Failed experiment": it has a line already
    if plan.adaptive:
        with suppress(ImportError):
            import optuna  # sets its level when it is imported

            optuna.logging.set_verbosity(optuna.logging.ERROR)
    before = Sweeper.validate_batch_is_legal
    Sweeper.validate_batch_is_legal = lambda self, batch: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        Sweeper.validate_batch_is_legal = before  # type: ignore[method-assign]


@contextmanager
def _held(plan: plans.Plan) -> Iterator[None]:
    """The folder of the sweep, for this process alone."""
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"hydra.sweep.dir={e.filename}: no folder can be made there: {e.strerror}") from e
    try:
        lock.lock(plan.folder)
    except UserError:
        raise UserError(f"{record.shown(plan.folder)}: another process is running this sweep") from None
    files.sweep(plan.folder)
    try:
        yield
    finally:
        lock.unlock(plan.folder)


@contextmanager
def _stoppable(plan: plans.Plan, invocation: str, board: Board) -> Iterator[list[int]]:
    """Within, Ctrl-C (SIGTERM, SIGHUP) asks the running points to save and end, wherever they run; a second ends at once."""
    asked: list[int] = []

    def stop(signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGHUP:
            signals.leave_terminal()
        if signals.insists(signum, asked[0] if asked else 0):
            raise KeyboardInterrupt
        asked.append(signum)
        (plan.folder / points.STOP).write_text(f"{invocation} {int(signum)}")
        board.say("stopping: the points that run finish their step and save it; Ctrl-C again stops at once")

    before = {s: signal.signal(s, stop) for s in signals.asking()}
    try:
        yield asked
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        with suppress(OSError):
            (plan.folder / points.STOP).unlink()


def _end(
    plan: plans.Plan,
    folders: Sequence[str],
    began: float,
    stopped: bool,
    broken: Exception | None,
    report: Callable[[Path], None],
) -> int:
    """Say how it ended, write the report, return the exit code."""
    from llmlab.training.progress import duration

    ran = [p.folder for p in plan.points]
    if plan.adaptive:
        fields = points.read_sweep(plan.folder)
        ran = [p["folder"] for p in fields["points"]]
    outcomes = {name: points.outcome(plan.folder / name) for name in ran}
    complete = [n for n, o in outcomes.items() if o.get("status") == "completed"]
    failed = {n: o for n, o in outcomes.items() if o and n not in complete}
    print(f"sweep {plan.name}: {len(complete)} of {plan.total} points complete, {duration(time.time() - began)}")
    if complete and not stopped:
        _report(plan.folder, report)
    for name, fields in failed.items():
        log = record.shown(plan.folder / name / points.LOG)
        print(f"{fields['status']}: {name}: {fields.get('reason')}  (see {log})", file=sys.stderr)
    if broken is not None:
        first = (str(broken).splitlines() or [""])[0]
        print(f"error: the launcher broke off: {type(broken).__name__}: {first}", file=sys.stderr)
    if stopped:
        again = shlex.join(["train", "-m", *(f"--config-dir={f}" for f in folders), *plan.typed, *plan.own])
        print(f"interrupted; go on with: {record.program_name()} {again}", file=sys.stderr)
        return 130
    return 1 if failed or broken is not None or len(complete) < min(plan.total, len(outcomes)) else 0


def _report(folder: Path, report: Callable[[Path], None]) -> None:
    """The verdict; that it can't be written hides nothing of the sweep."""
    try:
        report(folder)
    except Exception as e:
        first = (str(e).splitlines() or [""])[0]
        print(
            f"warning: no report: {first if isinstance(e, UserError) else f'{type(e).__name__}: {first}'}",
            file=sys.stderr,
        )
