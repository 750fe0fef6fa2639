"""Asking a case its checks, here or in processes of their own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool

import torch

from llmlab.check.checks import MODEL_CHECKS
from llmlab.check.parts import PART_CHECKS
from llmlab.check.processes import IsolatedProcess, ProcessDied, guarded_call, start_pool, terminate_children
from llmlab.check.refusal import crash, refusal
from llmlab.check.steps import trains
from llmlab.check.subject import Case, CheckFailed, NotApplicable, Result, Subject

BUILT = "built"  # the first of all: there is such a model, and it reads a text
Check = Callable[[Subject], None]


def built(subject: Subject) -> None:
    """The model can be composed and built, and reads a text; or it is refused in a line, with what to choose instead."""
    batch = subject.batch()
    with torch.no_grad():
        hidden = subject.model(batch).hidden
    if not torch.isfinite(hidden).all():
        raise CheckFailed("its hidden states are not finite")


def checks_of(kind: str) -> dict[str, Check]:
    """By name, what is asked of a case of a kind."""
    asked = {"part": PART_CHECKS, "swap": {"trains": trains, **MODEL_CHECKS}}
    return {BUILT: built, **asked.get(kind, MODEL_CHECKS)}


def every_check() -> dict[str, Check]:
    return {**checks_of("swap"), **checks_of("part")}


def check_case(case: Case, names: Sequence[str] | None = None) -> list[Result]:
    """What the named checks, by default all of its kind, find in a case. One result if there is no such model."""
    if "torch._dynamo" in sys.modules:  # what it has compiled of other models counts towards a limit
        sys.modules["torch._dynamo"].reset()
    subject = Subject(case)
    first = _run_check(subject, BUILT, built)
    if first.outcome != "passed":
        return [first]
    known = checks_of(case.kind)
    return [first, *(_run_check(subject, n, known[n]) for n in _selected(case, names))]


def _selected(case: Case, names: Sequence[str] | None) -> list[str]:
    return [n for n in checks_of(case.kind) if n != BUILT and (names is None or n in names)]


def _run_check(subject: Subject, name: str, ask: Check) -> Result:
    torch.manual_seed(0)
    case = subject.case.name
    try:
        ask(subject)
    except NotApplicable as e:
        return Result(case, name, "skipped", str(e))
    except CheckFailed as e:
        return Result(case, name, "failed", str(e))
    except Exception as e:
        if (reason := refusal(e)) is not None:
            return Result(case, name, "refused", reason)
        return Result(case, name, "failed", crash(e))
    return Result(case, name, "passed")


# ---------------------------------------------------------------- in processes

Names = Sequence[str] | None
DIED_MESSAGE = "crashed: the process that checked it has died"


def check_isolated(alone: IsolatedProcess, case: Case, names: Names = None) -> list[Result]:
    """What `check` finds, also if it ends its process: then one check after the other, until it is known which one did."""
    try:
        return alone(check_case, case, names)
    except ProcessDied:
        found: list[Result] = []
        for name in (BUILT, *_selected(case, names)):
            try:
                found.append(alone(check_case, case, [name])[-1])
            except ProcessDied:
                return [*found, Result(case.name, name, "failed", DIED_MESSAGE)]
        return found  # another process had taken all memory, say


class Pool:
    """Processes that check cases. Within `with`; `add` hands out cases, `results` gives what they find as it is found.

    A process that dies takes the others with it, and what was handed out: then that is handed out again to new ones, but
    for what it can have died of, which is checked alone.
    """

    def __init__(self, processes: int):
        self.processes, self.pool = processes, start_pool(processes)
        self.open: dict[Future[list[Result]], tuple[Case, Names]] = {}  # in the order in which they are begun
        self.found: list[tuple[Case, list[Result]]] = []
        self.alone = IsolatedProcess()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, failed: object, *unused: object) -> None:
        if failed:
            terminate_children()
        self.pool.shutdown(cancel_futures=True)
        self.alone.close()

    def add(self, case: Case, names: Names = None) -> None:
        try:
            future = self.pool.submit(guarded_call, check_case, case, names)
        except BrokenProcessPool:
            self._mend()
            return self.add(case, names)
        self.open[future] = case, names

    def results(self, *, block: bool = True) -> Iterator[tuple[Case, list[Result]]]:
        """Those that are there; with `block` all that were asked for."""
        while self.open or self.found:
            found, self.found = self.found, []
            yield from found
            done, _ = wait(self.open, None if block and not found else 0, FIRST_COMPLETED)
            if any(map(_is_lost, done)):
                self._mend()
                continue
            for future in done:
                yield self.open.pop(future)[0], future.result()
            if not block:
                return

    def _mend(self) -> None:
        wait(self.open)  # all are done, or lost
        lost = [asked for future, asked in self.open.items() if _is_lost(future)]
        self.open = {future: asked for future, asked in self.open.items() if not _is_lost(future)}
        self.pool.shutdown()
        self.pool = start_pool(self.processes)
        for asked in lost[self.processes :]:
            self.add(*asked)
        for case, names in lost[: self.processes]:  # the first, each in a process: one of them was what it died of
            self.found.append((case, check_isolated(self.alone, case, names)))


def _is_lost(future: Future[list[Result]]) -> bool:
    return isinstance(future.exception(), BrokenProcessPool)


def check_cases(
    cases: Iterable[Case], names: Names, processes: int, tell: Callable[[Case, list[Result]], None]
) -> None:
    """All results of all cases, as they come. Cases may be made while others are checked."""
    if processes == 1:
        with IsolatedProcess() as alone:
            for case in cases:
                tell(case, check_isolated(alone, case, names))
        return
    with Pool(processes) as pool:
        for case in cases:
            pool.add(case, names)
            for found in pool.results(block=False):
                tell(*found)
        for found in pool.results():
            tell(*found)
