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
QUICK: Literal["fork", "spawn"] = "fork" if sys.platform.startswith("linux") else "spawn"


class Died(Exception):
    """The process that was asked has ended without an answer."""


def quiet() -> None:
    """One thread a process: the models are tiny. What libraries warn of would be about them."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("torch").setLevel(logging.ERROR)


def workers(asked: int | None, cases: int) -> int:
    """How many processes: as many as there are cores, unless said otherwise, and no more than cases."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(asked or cores, cases))


# ---------------------------------------------------------------- in the process that asks


def started(processes: int, how: Literal["fork", "spawn"] = "spawn") -> ProcessPoolExecutor:
    """Processes that do `work`; they begin at once."""
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context(how), _begin)
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None  # so do they, before they have begun
    try:
        for _ in range(processes):
            pool.submit(quiet)
    finally:
        if main:
            signal.signal(signal.SIGINT, before)
    return pool


def end_all() -> None:
    """Ctrl-C: nobody waits for what is being checked."""
    for process in multiprocessing.active_children():
        process.terminate()


@contextmanager
def terminable() -> Iterator[None]:
    """Within, SIGTERM ends this process as Ctrl-C does, so that the others end too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Alone:
    """One process that is asked one thing at a time. If it dies of it, another one is asked the next."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def __call__(self, do: Callable[P, R], *given: P.args, **options: P.kwargs) -> R:
        """do(*given). Died if that ends the process."""
        if self._pool is None:
            self._pool = started(1, QUICK)
        try:
            return self._pool.submit(work, do, *given, **options).result()
        except BrokenProcessPool:
            self.close()
            raise Died from None
        except KeyboardInterrupt:
            end_all()
            raise

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool = None

    def __enter__(self) -> Alone:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


# ---------------------------------------------------------------- in the others

_told: list[int] = []  # the signal, once this process is to end


def _parent() -> int:
    parent = multiprocessing.parent_process()
    assert parent is not None and parent.pid is not None
    return parent.pid


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    signal.signal(signal.SIGTERM, _end)
    quiet()
    try:
        follow(_parent())
    except KeyboardInterrupt:
        os._exit(1)  # nothing has begun


def _end(signum: int, frame: object) -> None:
    _told.append(signum)
    sys.exit(1)  # out of what is being checked; what this process holds is given back as it ends


def work(do: Callable[..., Any], *given: Any, **options: Any) -> Any:
    """do(*given), unless this process is to end."""
    try:
        if _told:  # what was handed out already
            sys.exit(1)
        return do(*given, **options)
    finally:
        if _told and os.getppid() != _parent():
            os._exit(1)  # no one is left who would send it home
