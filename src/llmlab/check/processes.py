"""Worker processes for checks: they may die of what they check, and end when their parent does."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Literal, ParamSpec, TypeVar

import torch

from llmlab.runs.parent_death import follow

P = ParamSpec("P")
R = TypeVar("R")
# A forked process has all modules imported; a spawned one imports torch again, some seconds. macOS system libraries abort in
# a process that was forked (CPython made spawn the default there in 3.8), and Windows has no fork.
START_METHOD: Literal["fork", "spawn"] = "fork" if sys.platform.startswith("linux") else "spawn"


class ProcessDied(Exception):
    """Raised where a worker process ended before it returned a result."""


def configure_process() -> None:
    """Set up a process for checks: one thread, no warnings, which would be about tiny random models."""
    # Tiny products gain nothing from threads, and there is a process for each core. With one thread torch also starts no
    # OpenMP pool here, which a forked child would inherit without its threads and wait for.
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("torch").setLevel(logging.ERROR)


def n_processes(jobs: int | None, cases: int) -> int:
    """Number of worker processes: `jobs`, by default one a core, and no more than cases."""
    # cpu_count() counts all cores of a machine, also those that a container or taskset withholds; macOS has no affinity.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(jobs or cores, cases))


# ---------------------------------------------------------------- in the parent process


def start_pool(processes: int, how: Literal["fork", "spawn"] = "spawn") -> ProcessPoolExecutor:
    """A pool of processes set up for checks, all started."""
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context(how), _start_worker)
    main = threading.current_thread() is threading.main_thread()
    # A child inherits the ignored signal, so that Ctrl-C can't end it with a traceback before `_start_worker` runs.
    # signal.signal raises ValueError outside of the main thread.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    try:
        # ProcessPoolExecutor spawns a process only when work is submitted and none is idle, so each is given something.
        for _ in range(processes):
            pool.submit(configure_process)
    finally:
        if main:
            signal.signal(signal.SIGINT, before)
    return pool


def terminate_children() -> None:
    """End all worker processes without waiting for their checks."""
    for process in multiprocessing.active_children():
        process.terminate()


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Context in which SIGTERM raises KeyboardInterrupt, so that `finally` blocks run and the workers are ended.

    By default SIGTERM ends Python on the spot, which leaves the workers behind.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class IsolatedProcess:
    """A process that makes one call at a time. One that dies is replaced before the next call."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def __call__(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """function(*args, **kwargs) there. ProcessDied if that ends the process."""
        if self._pool is None:
            self._pool = start_pool(1, START_METHOD)
        try:
            return self._pool.submit(guarded_call, function, *args, **kwargs).result()  # type: ignore[arg-type]
        except BrokenProcessPool:
            self.close()
            raise ProcessDied from None
        except KeyboardInterrupt:
            terminate_children()
            raise

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool = None

    def __enter__(self) -> IsolatedProcess:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


# ---------------------------------------------------------------- in the workers

_signals: list[int] = []  # SIGTERM once it has come: this process is to end


def _parent_pid() -> int:
    parent = multiprocessing.parent_process()
    assert parent is not None and parent.pid is not None
    return parent.pid


def _start_worker() -> None:
    # A terminal sends Ctrl-C to every process of the foreground group; the parent ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _on_sigterm)
    configure_process()
    try:
        follow(_parent_pid())
    except KeyboardInterrupt:
        os._exit(1)  # the parent ended before this process could follow it


def _on_sigterm(signum: int, frame: object) -> None:
    _signals.append(signum)
    sys.exit(1)  # raises SystemExit inside the check, so that temporary folders and locks are released


def guarded_call(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """function(*args, **kwargs), unless this process is to end."""
    try:
        if _signals:  # the executor catches SystemExit and goes on with the next call in its queue
            sys.exit(1)
        return function(*args, **kwargs)
    finally:
        if _signals and os.getppid() != _parent_pid():
            os._exit(1)  # the parent is gone: nothing would ever tell the executor's loop to end
