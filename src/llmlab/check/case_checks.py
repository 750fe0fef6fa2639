"""Runs the checks of a case, in this process or in others that may crash."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool

import torch

from llmlab.check.checks import MODEL_CHECKS
from llmlab.check.parts import ALONE_CHECKS, PART_CHECKS
from llmlab.check.parts.options import OPTION_CHECKS
from llmlab.check.processes import IsolatedProcess, ProcessDied, guarded_call, start_pool, terminate_children
from llmlab.check.refusal import crash, refusal
from llmlab.check.steps import trains
from llmlab.check.subject import Case, CheckFailed, NotApplicable, Result, Subject
from llmlab.config.compose import unchecked
from llmlab.data.filtering import Filters
from llmlab.training.recipe import filters, part_factory

BUILT = "built"  # runs before all others, which need a model
Check = Callable[[Subject], None]


def built(subject: Subject) -> None:
    """The model can be composed and built, and reads a text; or it is refused in a line, with what to choose instead."""
    if subject.case.alone:
        slot, cfg = subject.case.parts[0][0], unchecked(subject.case.overrides)
        if slot == "filter":
            Filters(filters(cfg), text_of=str)
        else:
            part_factory(cfg, slot)()
        return
    batch = subject.batch()
    with torch.no_grad():
        hidden = subject.model(batch).hidden
    if not torch.isfinite(hidden).all():
        raise CheckFailed("its hidden states are not finite")


def checks_of(kind: str) -> dict[str, Check]:
    """{name: check} of a kind of case, in the order in which they run; "alone" are parts that are in no model."""
    alone = {name: PART_CHECKS[name] for name in ALONE_CHECKS}
    swap = {"trains": trains, **MODEL_CHECKS}
    by_kind = {"part": PART_CHECKS, "alone": alone, "setting": OPTION_CHECKS, "swap": swap}
    return {BUILT: built, **by_kind.get(kind, MODEL_CHECKS)}


def every_check() -> dict[str, Check]:
    return {**checks_of("swap"), **checks_of("part")}


def check_case(case: Case, names: Sequence[str] | None = None) -> list[Result]:
    """Results of the named checks of a case, by default all of its kind; a single result if the model can't be built."""
    # All models share the code of a layer, and torch compiles one code object at most 8 times
    # (torch._dynamo.config.recompile_limit) before it runs it uncompiled, or raises under fullgraph. Not imported just for
    # this: torch._dynamo takes a second or more.
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()
    subject = Subject(case)
    first = _run_check(subject, BUILT, built)
    if first.outcome != "passed":
        return [first]
    known = every_check()
    return [first, *(_run_check(subject, n, known[n]) for n in _selected(case, names))]


def _selected(case: Case, names: Sequence[str] | None) -> list[str]:
    return [n for n in checks_of("alone" if case.alone else case.kind) if n != BUILT and (names is None or n in names)]


def _run_check(subject: Subject, name: str, check: Check) -> Result:
    torch.manual_seed(0)  # so that a check gives the same alone (checks=NAME) and after others
    case = subject.case.name
    try:
        check(subject)
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
    """`check_case` in another process. If that dies, the checks run one at a time to find the one that kills it."""
    try:
        return alone(check_case, case, names)
    except ProcessDied:
        found: list[Result] = []
        for name in (BUILT, *_selected(case, names)):
            try:
                found.append(alone(check_case, case, [name])[-1])
            except ProcessDied:
                return [*found, Result(case.name, name, "failed", DIED_MESSAGE)]
        return found  # none dies when run again: the kernel may have killed it while memory was short


class Pool:
    """Worker processes that check cases, a context manager: `add` submits cases, `results` yields results as they come.

    When one worker of a ProcessPoolExecutor dies, the executor marks itself broken, terminates the other workers and fails
    every pending future. Cases that were pending are then submitted to a new pool, but for those that may have been running:
    as many as there are workers, in the order of submission. These run one at a time in a process of their own.
    """

    def __init__(self, processes: int):
        self.processes, self.pool = processes, start_pool(processes)
        self.open: dict[Future[list[Result]], tuple[Case, Names]] = {}  # in order of submission, as workers take them
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
        """Results that are ready; with `block` those of every case that was added."""
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
        wait(self.open)  # a broken pool fails its futures one by one, in a thread of its own
        lost = [job for future, job in self.open.items() if _is_lost(future)]
        self.open = {future: job for future, job in self.open.items() if not _is_lost(future)}
        self.pool.shutdown()
        self.pool = start_pool(self.processes)
        for job in lost[self.processes :]:
            self.add(*job)
        for case, names in lost[: self.processes]:  # one of these was running in the worker that died
            self.found.append((case, check_isolated(self.alone, case, names)))


def _is_lost(future: Future[list[Result]]) -> bool:
    return isinstance(future.exception(), BrokenProcessPool)


def check_cases(
    cases: Iterable[Case], names: Names, processes: int, tell: Callable[[Case, list[Result]], None]
) -> None:
    """Check all cases and pass each one's results to `tell` as they come. `cases` may be lazy: workers begin with the first."""
    if processes == 1:
        with IsolatedProcess() as alone:
            for case in cases:
                tell(case, check_isolated(alone, case, names))
        return
    with Pool(processes) as pool:
        for case in cases:
            pool.add(case, names)
            for done, results in pool.results(block=False):
                tell(done, results)
        for done, results in pool.results():
            tell(done, results)
