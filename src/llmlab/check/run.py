"""Asking a case its checks, here or in processes of their own."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

import torch

from llmlab.check.checks import MODEL_CHECKS
from llmlab.check.parts import PART_CHECKS
from llmlab.check.refusal import crash, refusal
from llmlab.check.steps import trains
from llmlab.check.subject import Case, NotApplicable, Result, Subject, Wrong

BUILT = "built"  # the first of all: there is such a model, and it reads a text
Check = Callable[[Subject], None]


def built(subject: Subject) -> None:
    """The model can be composed and built, and reads a text; or it is refused in a line, with what to choose instead."""
    batch = subject.batch()
    with torch.no_grad():
        hidden = subject.model(batch).hidden
    if not torch.isfinite(hidden).all():
        raise Wrong("its hidden states are not finite")


def checks_of(kind: str) -> dict[str, Check]:
    """By name, what is asked of a case of a kind."""
    asked = {"part": PART_CHECKS, "swap": {"trains": trains, **MODEL_CHECKS}}
    return {BUILT: built, **asked.get(kind, MODEL_CHECKS)}


def every_check() -> dict[str, Check]:
    return {**checks_of("swap"), **checks_of("part")}


def check(case: Case, names: Sequence[str] | None = None) -> list[Result]:
    """What the named checks, by default all of its kind, find in a case. One result if there is no such model."""
    known = checks_of(case.kind)
    if "torch._dynamo" in sys.modules:  # what it has compiled of other models counts towards a limit
        sys.modules["torch._dynamo"].reset()
    subject = Subject(case)
    first = _asked(subject, BUILT, built)
    if first.outcome != "passed":
        return [first]
    wanted = [n for n in known if n != BUILT and (names is None or n in names)]
    return [first, *(_asked(subject, n, known[n]) for n in wanted)]


def _asked(subject: Subject, name: str, ask: Check) -> Result:
    torch.manual_seed(0)
    case = subject.case.name
    try:
        ask(subject)
    except NotApplicable as e:
        return Result(case, name, "skipped", str(e))
    except Wrong as e:
        return Result(case, name, "failed", str(e))
    except Exception as e:
        if (reason := refusal(e)) is not None:
            return Result(case, name, "refused", reason)
        return Result(case, name, "failed", crash(e))
    return Result(case, name, "passed")


# ---------------------------------------------------------------- in processes


def workers(asked: int | None, cases: int) -> int:
    """How many processes: as many as there are cores, unless said otherwise, and no more than cases."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(asked or cores, cases))


_told: list[int] = []  # the signal, once this process is to end


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    signal.signal(signal.SIGTERM, _end)
    quiet()


def _end(signum: int, frame: object) -> None:
    _told.append(signum)
    sys.exit(1)  # out of what is being checked; what this process holds is given back as it ends


def _work(case: Case, names: Sequence[str] | None) -> list[Result]:
    if _told:  # what was handed out already
        sys.exit(1)
    return check(case, names)


def quiet() -> None:
    """One thread a process: the models are tiny. What libraries warn of would be about them."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("torch").setLevel(logging.ERROR)


class Pool:
    """Processes that check cases. Within `with`; `add` hands out cases, `results` gives what they find as it is found."""

    def __init__(self, processes: int):
        self.pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin)
        self.open: dict[Future[list[Result]], Case] = {}
        main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None  # so do they, before they have begun
        try:
            for _ in range(processes):  # they begin while the first cases are made
                self.pool.submit(quiet)
        finally:
            if main:
                signal.signal(signal.SIGINT, before)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, failed: object, *unused: object) -> None:
        if failed:  # Ctrl-C: nobody waits for what is being checked
            for process in multiprocessing.active_children():
                process.terminate()
        self.pool.shutdown(cancel_futures=True)

    def add(self, case: Case, names: Sequence[str] | None = None) -> None:
        self.open[self.pool.submit(_work, case, names)] = case

    def results(self, *, block: bool = True) -> Iterator[tuple[Case, list[Result]]]:
        """Those that are there; with `block` all that were asked for."""
        while self.open:
            done, _ = wait(self.open, None if block else 0, FIRST_COMPLETED)
            for future in done:
                case = self.open.pop(future)
                try:
                    yield case, future.result()
                except BrokenProcessPool:
                    yield case, [Result(case.name, BUILT, "failed", "crashed: the process that checked it has died")]
            if not block:
                return


def every(
    cases: Iterable[Case], names: Sequence[str] | None, processes: int, tell: Callable[[Case, list[Result]], None]
) -> None:
    """All results of all cases, as they come. Cases may be made while others are checked."""
    if processes == 1:
        for case in cases:
            tell(case, check(case, names))
        return
    with Pool(processes) as pool:
        for case in cases:
            pool.add(case, names)
            for found in pool.results(block=False):
                tell(*found)
        for found in pool.results():
            tell(*found)
