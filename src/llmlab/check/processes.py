"""Processes that check, which may die of what they check, and end with the one that asks."""

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
from typing import Any, Literal, ParamSpec, TypeVar

import torch

from llmlab.runs.parent_death import follow

P = ParamSpec("P")
R = TypeVar("R")
# A fork has all modules at once. Elsewhere than on Linux it can't be relied on.
START_METHOD: Literal["fork", "spawn"] = "fork" if sys.platform.startswith("linux") else "spawn"


class ProcessDied(Exception):
    """The process that was asked has ended without an answer."""


def configure_process() -> None:
    """One thread a process: the models are tiny. What libraries warn of would be about them."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("torch").setLevel(logging.ERROR)


def n_processes(asked: int | None, cases: int) -> int:
    """How many processes: as many as there are cores, unless said otherwise, and no more than cases."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(asked or cores, cases))


# ---------------------------------------------------------------- in the process that asks


def start_pool(processes: int, how: Literal["fork", "spawn"] = "spawn") -> ProcessPoolExecutor:
    """Processes that do `work`; they begin at once."""
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context(how), _start_worker)
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None  # so do they, before they have begun
    try:
        for _ in range(processes):
            pool.submit(configure_process)
    finally:
        if main:
            signal.signal(signal.SIGINT, before)
    return pool


def terminate_children() -> None:
    """Ctrl-C: nobody waits for what is being checked."""
    for process in multiprocessing.active_children():
        process.terminate()


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Within, SIGTERM ends this process as Ctrl-C does, so that the others end too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class IsolatedProcess:
    """One process that is asked one thing at a time. If it dies of it, another one is asked the next."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def __call__(self, do: Callable[P, R], *given: P.args, **options: P.kwargs) -> R:
        """do(*given). Died if that ends the process."""
        if self._pool is None:
            self._pool = start_pool(1, START_METHOD)
        try:
            return self._pool.submit(guarded_call, do, *given, **options).result()
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


# ---------------------------------------------------------------- in the others

_signals: list[int] = []  # the signal, once this process is to end


def _parent_pid() -> int:
    parent = multiprocessing.parent_process()
    assert parent is not None and parent.pid is not None
    return parent.pid


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    signal.signal(signal.SIGTERM, _on_sigterm)
    configure_process()
    try:
        follow(_parent_pid())
    except KeyboardInterrupt:
        os._exit(1)  # nothing has begun


def _on_sigterm(signum: int, frame: object) -> None:
    _signals.append(signum)
    sys.exit(1)  # out of what is being checked; what this process holds is given back as it ends


def guarded_call(do: Callable[..., Any], *given: Any, **options: Any) -> Any:
    """do(*given), unless this process is to end."""
    try:
        if _signals:  # what was handed out already
            sys.exit(1)
        return do(*given, **options)
    finally:
        if _signals and os.getppid() != _parent_pid():
            os._exit(1)  # no one is left who would send it home
