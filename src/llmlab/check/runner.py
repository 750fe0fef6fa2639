"""Runs a request: selects the cases, checks them in worker processes with a progress bar, and builds the report."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

from llmlab.check import case_checks, cases, combinations, processes, shrink
from llmlab.check.report import Report
from llmlab.check.request import ALONE_SLOTS, Request
from llmlab.check.subject import Case, Result
from llmlab.errors import UserError
from llmlab.registry import near
from llmlab.training.progress import duration

KIND_COMMANDS = {  # kind of case: description, with the command that checks one
    "part": "a part by itself, llmlab check SLOT=PART",
    "setting": "a part's options with other parts, llmlab check",
    "pair": "a model with some parts, llmlab check SLOT=PART SLOT=PART",
    "family": "a family as it is, llmlab check model=FAMILY",
    "swap": "a family with other parts, llmlab check model=FAMILY SLOT=PART",
}
SWAP_CHECKS = ["trains", "causality", "cache", "padding", "documents", "gradients"]
CaseFactory = Callable[[], Iterable[Case]]
ShowProgress = Callable[[Report], None]
PROGRESS_SECONDS = 20.0  # between progress lines where stderr is no terminal, as in CI logs


def run_request(request: Request, checks: str | None, jobs: int | None) -> Report:
    """Check everything, or the parts and families that the request names."""
    processes.configure_process()
    names = _check_names(checks, _case_kinds(request))
    report = Report(_descriptions(names), requested_checks=names)
    some, total = _cases(request, names)
    _run_cases(report, some, names, total, jobs)
    if request.whole:
        report.refused = combinations.combinations().refused()
    elif "pair" in _asked_kinds(request, names) and len(request.items) == 1:
        report.checked_part = request.items[0]
        report.refused = {
            pair: why for pair, why in combinations.combinations().refused().items() if report.checked_part in pair
        }
    shrink.add_commands(report, request.options)
    return report


def run_swaps(checks: str | None, jobs: int | None) -> Report:
    """Check every family with every part that it does not have: two training steps and the cheap checks.

    There are about 3,000 such models: a check that takes a second costs 50 minutes of CPU.
    """
    processes.configure_process()
    names = _check_names(checks, ["swap"])
    report = Report(_descriptions(names or SWAP_CHECKS), requested_checks=names)
    _run_cases(report, cases.swap_cases(), names or SWAP_CHECKS, 0, jobs)
    shrink.add_commands(report)
    return report


def _case_kinds(request: Request) -> list[str]:
    """Kinds of cases that a request needs. The slow ones come first, so that no process is left with one at the end."""
    if request.family is not None:
        return ["swap" if request.items else "family"]
    if len(request.items) == 1:
        return ["alone"] if request.items[0][0] in ALONE_SLOTS else ["part", "pair"]
    return ["pair"] if request.items else ["part", "family", "pair", "setting"]


def _asked_kinds(request: Request, names: Sequence[str] | None) -> list[str]:
    """Kinds of cases of a request that one of these checks is asked of; names: None for all."""
    return [k for k in _case_kinds(request) if names is None or set(names) & set(case_checks.checks_of(k))]


def _check_names(checks: str | None, kinds: Sequence[str]) -> list[str] | None:
    """Names in `checks=`, None for all. UserError for one that does not exist or that no case of these kinds has."""
    if checks is None:
        return None
    names = [n.strip() for n in checks.split(",") if n.strip()]
    if not names:
        raise UserError(f"checks={checks}: name one, or leave it out for all; {', '.join(case_checks.every_check())}")
    for name in names:
        if name not in case_checks.every_check():
            raise UserError(f"checks={name}: there is no such check; {near(name, case_checks.every_check())}")
        if not any(name in case_checks.checks_of(kind) for kind in kinds):
            if kinds == ["alone"]:
                raise UserError(f"checks={name}: it is asked of parts that a model has")
            kind = next(text for kind, text in KIND_COMMANDS.items() if name in case_checks.checks_of(kind))
            raise UserError(f"checks={name}: it is asked of {kind}")
    return names


def _descriptions(names: Sequence[str] | None) -> dict[str, str]:
    """{check: the first paragraph of its docstring}, as the report shows it."""
    every = case_checks.every_check()
    return {
        n: (c.__doc__ or "").split("\n\n")[0].replace("\n", " ").strip()
        for n, c in every.items()
        if _is_selected(n, names)
    }


def _is_selected(name: str, names: Sequence[str] | None) -> bool:
    return names is None or name in names or name == case_checks.BUILT


def _cases(request: Request, names: Sequence[str] | None) -> tuple[Iterator[Case], int]:
    """The cases, and their number; 0 where it is known only once the covering array is complete."""
    if request.family is not None:
        typed = [f"{slot}={name}" for slot, name in request.items]
        return iter([cases.family_case(request.family, (*typed, *request.options))]), 1
    if len(request.items) > 1:
        return iter([cases.combined(request.items, request.options)]), 1
    item, options = (request.items[0] if request.items else ("", "")), request.options
    of_item: dict[str, CaseFactory] = {
        "part": lambda: [cases.part_case(item, options)],
        "alone": lambda: [cases.part_case(item, options)],
        "pair": lambda: cases.pairs_with(item, options),
    }
    every: dict[str, CaseFactory] = {
        "part": cases.part_cases,
        "family": cases.family_cases,
        "pair": cases.iterate_pairs,
        "setting": cases.setting_cases,
    }
    kinds = _asked_kinds(request, names)
    makers = of_item if request.items else every
    return chain.from_iterable(makers[kind]() for kind in kinds), 0


def _run_cases(report: Report, some: Iterator[Case], names: Sequence[str] | None, total: int, jobs: int | None) -> None:
    order: dict[str, int] = {}

    def counted() -> Iterator[Case]:
        for case in some:
            order[case.name] = len(order)
            yield case

    with _progress_bar(total, order) as tell:

        def add(case: Case, results: list[Result]) -> None:
            report.add(case, results)
            tell(report)

        case_checks.check_cases(counted(), names, processes.n_processes(jobs, total or sys.maxsize), add)
    report.cases = {name: report.cases[name] for name in order}
    report.results.sort(key=lambda r: order[r.case])  # stable: the checks of a case stay in their order


@contextmanager
def _progress_bar(total: int, order: dict[str, int]) -> Iterator[ShowProgress]:
    """A bar in a terminal, elsewhere a line now and then. Yields a function to call with the report after each case."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        began = printed = time.monotonic()

        def line(report: Report) -> None:
            nonlocal printed
            if time.monotonic() - printed > PROGRESS_SECONDS:
                printed = time.monotonic()
                print(
                    f"{_progress_text(report, order, total)}  {duration(printed - began)}", file=sys.stderr, flush=True
                )

        yield line
        return
    columns = (SpinnerColumn(), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=total or None)

        def redraw(report: Report) -> None:
            text = _progress_text(report, order, total)
            progress.update(task, completed=len(report.cases), total=total or len(order), description=text)

        yield redraw


def _progress_text(report: Report, order: dict[str, int], total: int) -> str:
    failed = len(report.failed)
    return f"{len(report.cases)}/{total or len(order)} models" + (f", {failed} checks failed" if failed else "")
