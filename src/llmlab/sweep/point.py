"""One point of a sweep as a process of its own: whatever becomes of it, the others go on.

What Hydra's launchers call, in this process or in others; all that the processes of a sweep tell each other they write
into files: `point.json` in a point's folder (what is being done there), `.stop` in the sweep's (end what runs, begin no more).
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypedDict

from llmlab.config.spelling import quoted
from llmlab.errors import UserError
from llmlab.files import write_atomic
from llmlab.json_files import read_json
from llmlab.runs import lock, record
from llmlab.runs.parent_death import follow

if TYPE_CHECKING:
    from omegaconf import DictConfig

NAME, LOG, SWEEP, STOP = "point.json", "output.log", "sweep.json", ".stop"
PARENT = "LLMLAB_SWEEP_PARENT"
# Set where a sweep is started from a rank of another run; Lightning and torch would take the point for a rank of that.
RANKS = ("LOCAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
# Lightning goes by these: within a Slurm job it expects srun to start the ranks. A point has one task and starts its own.
SLURM = ("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_JOB_NAME")
# Names before _NUM_THREADS. joblib's loky and ray set them in their workers from the cores of the machine.
THREADS = ("OMP", "MKL", "OPENBLAS", "BLIS", "VECLIB_MAXIMUM", "NUMBA", "NUMEXPR")
POLL = 0.1  # seconds
PATIENCE = 60.0  # seconds in which a run ends whose sweep was killed: it finishes its step and saves


class Note(TypedDict, total=False):
    """point.json: what is being done in a point's folder."""

    hash: str
    overrides: list[str]
    invocation: str
    how: str
    began: float | None
    ended: float | None
    log: int


class SweptPoint(TypedDict):
    """A point in sweep.json."""

    folder: str
    overrides: list[str]


class Sweep(TypedDict):
    """sweep.json, as far as a sweep reads its own again."""

    keys: dict[str, list[str]]
    points: list[SweptPoint]


def point_state(folder: Path, wanted: str) -> str:
    """The state of a point's folder, which says what to do there: "new", "complete", "resume", "again" or "busy".

    UserError if it holds a run with another config than that of hash `wanted`.
    """
    if lock.is_locked(folder):
        return "busy"
    if not (folder / record.NAME).exists():
        return "new"
    note = read_note(folder)
    if not note or note.get("hash", wanted) != wanted:  # a point whose config had an error has no hash
        raise UserError(
            f"{record.relative_path(folder)} holds a run with another config; choose another sweep=NAME, or delete that folder"
        )
    fields = outcome(folder)
    if fields.get("status") == "completed":
        return "complete"
    if any((folder / "checkpoints").glob("step=*/manifest.json")):
        return "resume"
    return "again"


def outcome(folder: Path) -> dict[str, Any]:
    """The record of a point's run; empty where there is none."""
    try:
        return record.read(folder)
    except UserError:
        return {}


def read_note(folder: Path) -> dict[str, Any]:
    """point.json, empty where there is none. UserError if it is damaged."""
    try:
        return read_json(folder / NAME, Note)
    except FileNotFoundError:
        return {}


def read_sweep(folder: Path) -> dict[str, Any]:
    """sweep.json. UserError if it is damaged, FileNotFoundError if it is not there."""
    return read_json(folder / SWEEP, Sweep)


def validation_loss(fields: Mapping[str, Any]) -> float | None:
    return (fields.get("metrics") or {}).get("val_loss")


@dataclass(frozen=True)
class Runner:
    """The task of Hydra's launchers. Its fields are plain values: launchers pickle it for other processes and machines.

    hashes: {folder: hash} of the points that are known; any other point is composed where it runs.
    threads: cores for each point, None: as many as it likes. environment: the user's own settings of threads.
    gpus: of this machine, to be shared out among the `jobs` points that run at once.
    """

    name: str
    folder: str
    keys: tuple[str, ...]
    opened: frozenset[str]
    hashes: dict[str, str]
    config_dirs: tuple[str, ...]
    invocation: str
    main: int
    threads: int | None
    environment: dict[str, str]
    jobs: int = 1
    gpus: tuple[str, ...] = ()

    def __call__(self, cfg: DictConfig) -> float | None:
        """The validation loss; None where the point failed or was not begun.

        Raises nothing but KeyboardInterrupt: Hydra's sweeper reads each job's return_value, which raises the exception of a
        failed job and ends the sweep.
        """
        from hydra.core.hydra_config import HydraConfig

        from llmlab.sweep.grid import point_name

        if os.getpid() != self.main:
            # A terminal sends Ctrl-C to a launcher's workers too; the sweep's process alone says when to stop. In a thread
            # other than the main one signal.signal raises ValueError.
            with suppress(ValueError):
                signal.signal(signal.SIGINT, lambda *_: None)
        overrides = [str(o) for o in HydraConfig.get().overrides.task]
        overrides = [o[1:] if o[0] == "+" and o[1:].partition("=")[0] in self.opened else o for o in overrides]
        folder = Path(self.folder) / point_name(overrides, self.keys)
        try:
            return None if self.stopped() else self.run(overrides, folder, cfg)
        except Exception as e:
            reason = str(e).splitlines()[0] if isinstance(e, UserError) else f"{type(e).__name__}: {e}"
            self._fail(folder, overrides, "failed", reason)
            now, note = time.time(), read_note(folder)
            begun = note.get("began", now) if note.get("invocation") == self.invocation else now
            how = note.get("how", "new")
            self._note(folder, {"invocation": self.invocation, "how": how, "began": begun, "ended": now})
            return None

    def run(self, overrides: list[str], folder: Path, cfg: DictConfig) -> float | None:
        """Do what the state of the point's folder asks for, and return the validation loss."""
        wanted = self.hashes.get(folder.name) or self._appended(folder, overrides)
        deadline = time.monotonic() + PATIENCE
        # A run whose sweep was killed is still finishing its step in there.
        while (how := point_state(folder, wanted)) == "busy":
            if time.monotonic() > deadline:
                raise UserError("another process is training in this run folder")
            time.sleep(POLL)
        folder.mkdir(parents=True, exist_ok=True)
        if how == "again":
            remove_leftovers(folder)
        note: Note = {"overrides": overrides, "hash": wanted, "invocation": self.invocation, "how": how}
        if how != "complete":
            log_size = (folder / LOG).stat().st_size if (folder / LOG).exists() else 0
            self._note(folder, {**note, "began": time.time(), "ended": None, "log": log_size})
            with claim_slot(Path(self.folder), self.jobs) as slot:
                gpus = assigned_gpus(self.gpus, slot, self.jobs, _n_ranks(cfg))
                self._attempt(overrides, folder, how, cfg, gpus)
        elif folder.name not in self.hashes:
            self._note(folder, {**note, "began": time.time()})
        self._note(folder, {"ended": time.time()})
        fields = outcome(folder)
        return validation_loss(fields) if fields.get("status") == "completed" else None

    def stopped(self) -> int:
        """The signal that has stopped the sweep, 0 if none has."""
        try:
            invocation, _, signum = Path(self.folder, STOP).read_text(encoding="utf-8").partition(" ")
            return int(signum) if invocation == self.invocation else 0
        except (OSError, ValueError):
            return 0

    def _note(self, folder: Path, fields: Note) -> None:
        """Update point.json."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / NAME, json.dumps({**read_note(folder), **fields}, indent=1) + "\n")

    def _appended(self, folder: Path, overrides: list[str]) -> str:
        """The hash of a point that an adaptive sweeper has just chosen; it is entered in sweep.json."""
        from llmlab.runs.compose import compose
        from llmlab.sweep.grid import digest

        hashed = digest(compose(overrides, self.config_dirs))
        with _turn(Path(self.folder)):
            path = Path(self.folder, SWEEP)
            fields = read_sweep(path.parent)
            point = {"folder": folder.name, "overrides": overrides, "hash": hashed}
            fields["points"] = [p for p in fields["points"] if p["folder"] != folder.name] + [point]
            for override in overrides:
                key, _, value = override.partition("=")
                if key in fields["keys"] and value not in fields["keys"][key]:
                    fields["keys"][key].append(value)
            write_atomic(path, json.dumps(fields, indent=1) + "\n")
        return hashed

    # ---------------------------------------------------------------- the process

    def _attempt(self, overrides: list[str], folder: Path, how: str, cfg: DictConfig, gpus: tuple[str, ...]) -> None:
        """Run the point's process once; if it fails without a word in its record, write the reason there."""
        command = [sys.executable, "-m", "llmlab", "train", *(f"--config-dir={d}" for d in self.config_dirs)]
        if how == "resume":
            command.append(f"resume={quoted(str(folder))}")  # its own config.yaml, whose hash is this point's
        else:
            named = [] if any(o.startswith("sweep=") for o in overrides) else [f"sweep={quoted(self.name)}"]
            command += [*overrides, *named, f"hydra.run.dir={quoted(str(folder))}"]
        before = _bytes(folder / record.NAME)
        # Appended: the log of an attempt that failed is what a user looks for.
        with open(folder / LOG, "ab") as log:
            at = log.tell()
            code = self._process(command, log, self._environment(cfg, gpus))
        fields = outcome(folder)
        if code == 0 and fields.get("status") == "completed":
            return
        if _bytes(folder / record.NAME) != before and fields.get("status") in ("failed", "interrupted"):
            return  # the run itself has recorded the reason
        stopped = self.stopped()
        reason = "the sweep was stopped" if stopped else _failure_reason(code, folder / LOG, at)
        self._fail(folder, overrides, "interrupted" if stopped else "failed", reason)

    def _process(self, command: list[str], log: IO[bytes], environment: dict[str, str]) -> int:
        """Run a process to its end and return its exit code, negative if a signal killed it. Its ranks and workers are in
        its process group and end with it."""
        parent = os.getppid() if os.getpid() != self.main else None
        process = subprocess.Popen(
            command,
            # A debugger or a password prompt would wait in there unseen.
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C in the terminal reaches the sweep alone, which passes it on once
        )
        asked = False
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    return process.wait(POLL)
                orphan = parent == self.main and os.getppid() != parent
                if not asked and (signum := self.stopped() or (signal.SIGINT if orphan else 0)):
                    asked = True
                    _kill(process.pid, signum)
        finally:
            # The whole process group is killed: ranks and loader workers of a process that crashed would live on.
            if process.poll() != 0:
                _kill(process.pid, signal.SIGKILL)
                process.wait()

    def _environment(self, cfg: DictConfig, gpus: tuple[str, ...]) -> dict[str, str]:
        """The environment of a point's process: that of this one without what a launcher or another run has set."""
        drop = set(RANKS)
        if "ray" not in sys.modules:  # ray sets the number of CPUs that it gave the task
            drop |= {f"{name}_NUM_THREADS" for name in THREADS}
        if os.environ.get("SLURM_NTASKS", "1") == "1":
            drop |= set(SLURM)
        env = {k: v for k, v in os.environ.items() if k not in drop}
        if self.threads is not None:
            env["OMP_NUM_THREADS"] = str(max(1, self.threads // max(1, _n_ranks(cfg) or 1)))
        if gpus:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        return {
            **env,
            **self.environment,
            # Else Python holds back 8 KiB of what goes to a file, and the board reads the log.
            "PYTHONUNBUFFERED": "1",
            # The board reads the log as UTF-8, whatever the locale (Latin-1, say) would have a file be.
            "PYTHONIOENCODING": "utf-8",
            PARENT: str(os.getpid()),
        }

    def _fail(self, folder: Path, overrides: list[str], how: str, reason: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        there = outcome(folder) or {"schema": record.SCHEMA, "overrides": overrides, "metrics": {}}
        record.Record(folder, there).update(status=how, reason=reason)


@contextmanager
def claim_slot(folder: Path, jobs: int) -> Iterator[int]:
    """Context that holds one of `jobs` slots of the sweep in `folder`, which no other running point has.

    flock, since the kernel releases it when a process dies, however it dies.
    """
    if jobs == 1:
        yield 0
        return
    with ExitStack() as stack:
        files = [stack.enter_context(open(folder / f".place-{i}", "w", encoding="utf-8")) for i in range(jobs)]
        while (slot := next((i for i, file in enumerate(files) if _try_lock(file)), None)) is None:
            time.sleep(POLL)
        yield slot


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def assigned_gpus(gpus: tuple[str, ...], slot: int, jobs: int, ranks: int | None) -> tuple[str, ...]:
    """The GPUs of a slot: one for each rank of a point (None: an equal share), in turn. Empty: leave all visible."""
    each = max(1, len(gpus) // jobs) if ranks is None else ranks
    if jobs == 1 or each > len(gpus):
        return ()
    return tuple(gpus[(slot * each + i) % len(gpus)] for i in range(each))


def _n_ranks(cfg: DictConfig) -> int | None:
    """Ranks of a point on this machine; None where it takes as many as there are devices."""
    devices = str(cfg.trainer.devices)
    return int(devices) if devices.isdigit() else 1 if cfg.strategy.name == "single" else None


def remove_leftovers(folder: Path) -> None:
    """Remove the files of a run that can't be resumed, but for its log and note."""
    for path in folder.iterdir():
        # The lock stays: unlinked, two processes could each hold one on a file of this name.
        if path.name in (LOG, NAME, lock.LOCK):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def follow_parent() -> None:
    """In a point's process: if the process that started it is killed, end as if asked to (Linux)."""
    if (parent := os.environ.pop(PARENT, None)) is not None:
        follow(int(parent))


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Context that one process at a time may be in: points that run at once update one sweep.json."""
    with open(folder / ".turn", "w", encoding="utf-8") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _kill(group: int, signum: int) -> None:
    # It may have ended just now.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signum)


def _failure_reason(code: int, log: Path, at: int) -> str:
    """The reason why a point ended: its last error line, else the signal or the exit code."""
    with open(log, "rb") as f:
        f.seek(at)
        errors = [line for line in f.read().decode(errors="replace").splitlines() if line.startswith("error: ")]
    if errors:
        return errors[-1].removeprefix("error: ")
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"it ended with exit code {code} and without a word"
