"""From what was asked for to a report: which cases, in processes, with a bar that says how far it is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

from llmlab.check import case_checks, cases, combinations, processes, shrink
from llmlab.check.report import Report
from llmlab.check.request import Request
from llmlab.check.subject import Case, Result
from llmlab.errors import UserError
from llmlab.registry import near
from llmlab.training.progress import duration

KIND_COMMANDS = {  # of a case, and what is typed for one
    "part": "a part by itself, llmlab check SLOT=PART",
    "pair": "a model with some parts, llmlab check SLOT=PART SLOT=PART",
    "family": "a family as it is, llmlab check model=FAMILY",
    "swap": "a family with other parts, llmlab check model=FAMILY SLOT=PART",
}
SWAP_CHECKS = ["trains", "causality", "cache", "padding", "documents", "gradients"]
CaseFactory = Callable[[], Iterable[Case]]
PROGRESS_SECONDS = 20.0  # seconds between lines where no one looks


def run_request(asked: Request, checks: str | None, jobs: int | None) -> Report:
    """The matrix, or the part of it that was asked for."""
    processes.configure_process()
    names = _check_names(checks, _case_kinds(asked))
    report = Report(_descriptions(names), requested_checks=names)
    some, total = _cases(asked, names)
    _run_cases(report, some, names, total, jobs)
    if asked.whole:
        report.refused = combinations.combinations().refused()
    elif len(asked.items) == 1 and asked.family is None:
        report.checked_part = asked.items[0]
        report.refused = {
            pair: why for pair, why in combinations.combinations().refused().items() if report.checked_part in pair
        }
    shrink.add_commands(report, asked.options)
    return report


def run_swaps(checks: str | None, jobs: int | None) -> Report:
    """Every family with every part that it does not have: two steps of training, and what is cheap to ask."""
    processes.configure_process()
    names = _check_names(checks, ["swap"])
    report = Report(_descriptions(names or SWAP_CHECKS), requested_checks=names)
    _run_cases(report, cases.swap_cases(), names or SWAP_CHECKS, 0, jobs)
    shrink.add_commands(report)
    return report


def _case_kinds(asked: Request) -> list[str]:
    """Of the cases that answer it. Those that take long come first."""
    if asked.family is not None:
        return ["swap" if asked.items else "family"]
    return ["pair"] if len(asked.items) > 1 else ["part", "pair"] if asked.items else ["part", "family", "pair"]


def _check_names(checks: str | None, kinds: Sequence[str]) -> list[str] | None:
    """UserError for a check that does not exist, or that no case of these kinds has."""
    if checks is None:
        return None
    names = [n.strip() for n in checks.split(",") if n.strip()]
    if not names:
        raise UserError(f"checks={checks}: name one, or leave it out for all; {', '.join(case_checks.every_check())}")
    for name in names:
        if name not in case_checks.every_check():
            raise UserError(f"checks={name}: there is no such check; {near(name, case_checks.every_check())}")
        if not any(name in case_checks.checks_of(kind) for kind in kinds):
            of = next(what for kind, what in KIND_COMMANDS.items() if name in case_checks.checks_of(kind))
            raise UserError(f"checks={name}: it is asked of {of}")
    return names


def _descriptions(names: Sequence[str] | None) -> dict[str, str]:
    every = case_checks.every_check()
    return {
        n: (c.__doc__ or "").split("\n\n")[0].replace("\n", " ").strip()
        for n, c in every.items()
        if _is_selected(n, names)
    }


def _is_selected(name: str, names: Sequence[str] | None) -> bool:
    return names is None or name in names or name == case_checks.BUILT


def _cases(asked: Request, names: Sequence[str] | None) -> tuple[Iterator[Case], int]:
    """The cases, and how many, 0 if that is seen as they are made."""
    if asked.family is not None:
        typed = [f"{slot}={name}" for slot, name in asked.items]
        return iter([cases.family_case(asked.family, (*typed, *asked.options))]), 1
    if len(asked.items) > 1:
        return iter([cases.combined(asked.items, asked.options)]), 1
    what = (asked.items[0] if asked.items else ("", "")), asked.options
    own: dict[str, CaseFactory] = {"part": lambda: [cases.part_case(*what)], "pair": lambda: cases.pairs_with(*what)}
    every: dict[str, CaseFactory] = {
        "part": cases.part_cases,
        "family": cases.family_cases,
        "pair": cases.iterate_pairs,
    }
    kinds = [k for k in _case_kinds(asked) if names is None or set(names) & set(case_checks.checks_of(k))]
    makers = own if asked.items else every
    return chain.from_iterable(makers[kind]() for kind in kinds), 0


def _run_cases(report: Report, some: Iterator[Case], names: Sequence[str] | None, total: int, jobs: int | None) -> None:
    order: dict[str, int] = {}

    def counted() -> Iterator[Case]:
        for case in some:
            order[case.name] = len(order)
            yield case

    with _progress_bar(total, order) as tell:

        def told(case: Case, found: list[Result]) -> None:
            report.add(case, found)
            tell(report)

        case_checks.check_cases(counted(), names, processes.n_processes(jobs, total or sys.maxsize), told)
    report.cases = {name: report.cases[name] for name in order}
    report.results.sort(key=lambda r: order[r.case])  # stable: the checks of a case stay in their order


@contextmanager
def _progress_bar(total: int, order: dict[str, int]) -> Iterator[Any]:
    """A bar in a terminal, elsewhere a line now and then. What it gives is called after each case."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        began = said = time.monotonic()

        def line(report: Report) -> None:
            nonlocal said
            if time.monotonic() - said > PROGRESS_SECONDS:
                said = time.monotonic()
                print(f"{_progress_text(report, order, total)}  {duration(said - began)}", file=sys.stderr, flush=True)

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
