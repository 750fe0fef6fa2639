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
Launch = Callable[[Sequence[str], points.Runner], object]


def run(overrides: Sequence[str], folders: Sequence[str], launch: Launch, report: Callable[[Path], None]) -> int:
    """Run a sweep; 0 if every point is complete, 1 if some failed, 130 if it was stopped. UserError before any begins.

    launch(overrides, task): Hydra's multirun with `task` for each point. report(folder) writes the verdict of what ran.
    """
    plan = plans.make_plan(overrides, folders)
    # Before the lock and before anything is written: a folder with another run in it refuses the sweep.
    how = {p.folder: points.point_state(plan.folder / p.folder, p.hash) for p in plan.points}
    began = time.time()
    with _locked(plan):
        write_atomic(plan.folder / points.SWEEP, json.dumps(_record(plan), indent=1) + "\n")
        # Notes and a stop request that an earlier call left in the folder bear another one, and are
        # not taken for this one's.
        invocation = uuid.uuid4().hex
        print(_first_line(plan, how), flush=True)
        done = {name for name, what in how.items() if what == "complete"}
        broken: Exception | None = None
        with Board(plan, invocation, done) as board, _stop_on_signal(plan, invocation, board) as stopped:
            try:
                if len(done) < plan.total:
                    hydra = [o for o in plan.own if not o.startswith("hydra.sweep.dir=")]
                    folder = f"hydra.sweep.dir={quoted(str(plan.folder))}"
                    typed = ["+" * (o.partition("=")[0] in plan.opened) + o for o in _beside_swept(plan)]
                    with _without_second_check(plan):
                        launch([*typed, *hydra, *plan.defaults, folder], _runner(plan, folders, invocation))
            except UserError:
                raise
            except Exception as e:
                # In a launcher or a sweeper; the points that ran have their records. optuna's sweeper raises at its end
                # where no trial has a value (`study.best_trial`).
                broken = e
        return _finish(plan, folders, began, bool(stopped), broken, report)


def _beside_swept(plan: plans.Plan) -> list[str]:
    """What the sweeper is handed, options of a swept part as choices of one value.

    Before its points Hydra composes a config without what is swept. An option of a part that is null there (alignment,
    adapter, reward) has no place in it and ends the sweep, while choices are left out.
    """
    if plan.adaptive:
        return list(plan.handed)
    found = []
    for word in plan.handed:
        key, _, value = word.partition("=")
        of_swept = key not in plan.keys and key.lstrip("+").partition(".")[0] in plan.keys and key[0] != "~"
        # choice(null) is refused; what is in quotes comes out of it without them.
        value = f"'{value}'" if value.strip().lower() in ("", "null") else value
        found.append(f"{key}=choice({value})" if of_swept else word)
    return found


def _runner(plan: plans.Plan, folders: Sequence[str], invocation: str) -> points.Runner:
    """The task that Hydra's launcher runs for each point."""
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
        # torch would take all cores in each of the points that run at once.
        threads=max(1, plans.cores_here() // plan.jobs) if plan.jobs > 1 else None,
        environment={name: os.environ[name] for name in names if name in os.environ},
        jobs=plan.jobs if plan.gpus else 1,
        gpus=plan.gpus,
    )


def _record(plan: plans.Plan) -> dict[str, Any]:
    """The contents of sweep.json. Points that an earlier sweep of the same name has run stay in it."""
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


def _first_line(plan: plans.Plan, how: dict[str, str]) -> str:
    """The line that is printed before the points begin. how: the state of each point."""
    shape = " x ".join(f"{len(v)} {k}" if v else k for k, v in plan.keys.items())
    line = f"sweep {plan.name}: {plan.total} point{'s' * (plan.total != 1)}" + (f" ({shape})" if shape else "")
    counts = [list(how.values()).count(what) for what in ("complete", "resume", "again")]
    known = [f"{n} {what}" for n, what in zip(counts, ("complete", "to go on with", "to run again"), strict=True) if n]
    return f"{line} in {record.relative_path(plan.folder)}" + (f": {', '.join(known)}" if known else "")


@contextmanager
def _without_second_check(plan: plans.Plan) -> Iterator[None]:
    """Context in which Hydra's sweepers don't compose all points once more before the first begins, a quarter of a second
    each (`validate_batch_is_legal`), and optuna logs no line for each trial, which the board prints."""
    from hydra.plugins.sweeper import Sweeper

    # The optuna sweeper warns of each failed trial, with the exception that the board has printed.
    logging.getLogger("hydra_plugins").setLevel(logging.ERROR)
    if plan.adaptive:
        with suppress(ImportError):
            # First, since it sets its level when it is imported.
            import optuna

            optuna.logging.set_verbosity(optuna.logging.ERROR)
    before = Sweeper.validate_batch_is_legal
    Sweeper.validate_batch_is_legal = lambda self, batch: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        Sweeper.validate_batch_is_legal = before  # type: ignore[method-assign]


@contextmanager
def _locked(plan: plans.Plan) -> Iterator[None]:
    """Context in which the folder of the sweep is locked for this process."""
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"hydra.sweep.dir={e.filename}: no folder can be made there: {e.strerror}") from e
    try:
        lock.lock(plan.folder)
    except UserError:
        raise UserError(f"{record.relative_path(plan.folder)}: another process is running this sweep") from None
    files.sweep(plan.folder)
    try:
        yield
    finally:
        lock.unlock(plan.folder)


@contextmanager
def _stop_on_signal(plan: plans.Plan, invocation: str, board: Board) -> Iterator[list[int]]:
    """Context in which Ctrl-C (SIGTERM, SIGHUP) asks the running points to save and end; a second one ends at once.

    The request is a file in the sweep's folder, which points on other machines see too.
    """
    asked: list[int] = []

    def stop(signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGHUP:
            signals.leave_terminal()
        if signals.ends_at_once(signum, asked[0] if asked else 0):
            raise KeyboardInterrupt
        # Python runs a handler between two bytecodes of the main thread, so it may write files and print.
        asked.append(signum)
        (plan.folder / points.STOP).write_text(f"{invocation} {int(signum)}", encoding="utf-8")
        board.say("stopping: the points that run finish their step and save it; Ctrl-C again stops at once")

    before = {s: signal.signal(s, stop) for s in signals.handled_signals()}
    try:
        yield asked
    finally:
        # Also where an exception passes: a handler of a sweep that has ended would swallow Ctrl-C.
        for signum, handler in before.items():
            signal.signal(signum, handler)
        with suppress(OSError):
            (plan.folder / points.STOP).unlink()


def _finish(
    plan: plans.Plan,
    folders: Sequence[str],
    began: float,
    stopped: bool,
    broken: Exception | None,
    report: Callable[[Path], None],
) -> int:
    """Print the outcome, write the report, return the exit code."""
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
        _write_report(plan.folder, report)
    for name, fields in failed.items():
        log = record.relative_path(plan.folder / name / points.LOG)
        print(f"{fields['status']}: {name}: {fields.get('reason')}  (see {log})", file=sys.stderr)
    if broken is not None:
        first = (str(broken).splitlines() or [""])[0]
        print(f"error: the launcher broke off: {type(broken).__name__}: {first}", file=sys.stderr)
    if stopped:
        again = shlex.join(["train", "-m", *(f"--config-dir={f}" for f in folders), *plan.typed, *plan.own])
        print(f"interrupted; go on with: {record.program_name()} {again}", file=sys.stderr)
        # 128 + SIGINT, as shells have it.
        return 130
    return 1 if failed or broken is not None or len(complete) < min(plan.total, len(outcomes)) else 0


def _write_report(folder: Path, report: Callable[[Path], None]) -> None:
    """Write the report; an error in it is a warning, since the runs are complete."""
    try:
        report(folder)
    except Exception as e:
        first = (str(e).splitlines() or [""])[0]
        print(
            f"warning: no report: {first if isinstance(e, UserError) else f'{type(e).__name__}: {first}'}",
            file=sys.stderr,
        )
