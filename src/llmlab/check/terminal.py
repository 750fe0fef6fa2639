"""Prints a report: parts in colours, checks in numbers, and each failure with the command that reproduces it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmlab.check.case_checks import BUILT
from llmlab.check.covering_array import as_words
from llmlab.check.page import TWINS_PAGE, checked_parts
from llmlab.check.report import MARKS, Report
from llmlab.check.request import SLOTS
from llmlab.check.subject import Result
from llmlab.check.twins import NO_TWIN
from llmlab.runs.record import relative_path
from llmlab.training.progress import duration

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

COLOURS = {"failed": "red", "passed": "green", "refused": "yellow", "skipped": "dim", "": "dim"}
MAX_LINES = 12  # reasons and failures that are printed; the page has all


def show(report: Report) -> None:
    """Print the whole report."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    console.print(_matrix(report))
    for line in _refused(report):
        console.print(Text(line, style="yellow"), soft_wrap=True)
    for line in _skipped(report):
        console.print(Text(line, style=COLOURS["skipped"]), soft_wrap=True)
    for slot, name in report.without_twin:
        line = f"{slot}={name} has no twin: its numbers are compared with nothing; {TWINS_PAGE} shows how to write one"
        console.print(Text(line, style=COLOURS["skipped"]), soft_wrap=True)
    for line, style in _failed(report):
        console.print(Text(line, style=style), soft_wrap=True)
    verdict, style = _verdict(report)
    console.print(Text(verdict, style=style))


def show_files(files: Sequence[Path]) -> None:
    """Print the paths of written files."""
    from rich.console import Console
    from rich.text import Text

    for file in files:
        Console(highlight=False).print(Text(f"report: {relative_path(file)}", style="cyan"), soft_wrap=True)


def _verdict(report: Report) -> tuple[str, str]:
    n, failed = len(report.cases), report.failed
    asked = sum(r.outcome in ("passed", "failed") and not _is_incidental(report, r) for r in report.results)
    noun = "part" if all(case.alone for case in report.cases.values()) else "model"
    models, checks = f"{n} {noun}{'s' * (n != 1)}, {duration(report.seconds)}", f"check{'s' * (asked != 1)}"
    if failed:
        verdict = f"{len(failed)} of {asked} {checks} failed in {len({r.case for r in failed})} of {models}"
        return verdict, "bold red"
    if asked:
        return (f"all {asked} checks hold: {models}" if asked > 1 else f"the check holds: {models}"), "bold green"
    refused = any(r.outcome == "refused" for r in report.results)
    return f"refused: {models}" if refused else f"nothing was checked: {models}", "bold yellow"


def _is_incidental(report: Report, r: Result) -> bool:
    """True for the check that a model can be built, where other checks were requested: it passes, but answers nothing."""
    return (
        r.check == BUILT
        and r.outcome == "passed"
        and report.requested_checks is not None
        and BUILT not in report.requested_checks
    )


def _matrix(report: Report) -> Table:
    """A table with a line for each slot, its parts coloured by outcome, one for the families and one for the checks."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    blamed = _failing_parts(report)
    by_slot: dict[str, list[Text]] = {}
    for item in checked_parts(report):
        outcomes = {report.outcome_of_case(name) for name in report.cases_with(item)}
        outcome = next((o for o in MARKS if o in outcomes), "")
        if outcome == "failed" and blamed and not any(item in some for some in blamed):
            outcome = "passed"  # the model fails without this part too
        elif (
            report.checked_part not in (None, item)
            and outcome not in ("failed", "passed")
            and any(item in p for p in report.refused)
        ):
            outcome = "refused"  # it can't be combined with the part that was requested
        by_slot.setdefault(item[0], []).append(Text(f"{MARKS[outcome]}{item[1]}", style=COLOURS[outcome]))
    if report.checked_part is not None:  # parts that can't be combined with it were in no model
        for pair in report.refused:
            slot, name = next(i for i in pair if i != report.checked_part)
            if (slot, name) not in checked_parts(report):
                by_slot.setdefault(slot, []).append(Text(f"{MARKS['refused']}{name}", style=COLOURS["refused"]))
    families: dict[str, list[str]] = {}
    for case in report.cases.values():
        if case.kind in ("family", "swap"):
            families.setdefault(case.name.split()[0], []).append(case.name)
    for name, some in families.items():
        outcome = report.outcome(some)
        by_slot.setdefault("model", []).append(Text(f"{MARKS[outcome]}{name}", style=COLOURS[outcome]))
    for slot in (s for s in ("model", *SLOTS) if s in by_slot):
        table.add_row(slot, Text("  ").join(by_slot[slot]))
    table.add_row("checks", Text("  ").join(_checks(report)))
    return table


def _failing_parts(report: Report) -> list[set[tuple[str, str]]]:
    """The parts that each failure's command names."""
    commands = {r.command for r in report.failed if report.cases[r.case].kind in ("pair", "part")}
    return [{(s, n) for s, _, n in (w.partition("=") for w in c.split()) if s in SLOTS} for c in commands]


def _checks(report: Report) -> list[Text]:
    """Each check that applied, with the number of models that pass."""
    from rich.text import Text

    cells = []
    for name in report.checks:
        outcomes = Counter(r.outcome for r in report.results if r.check == name)
        held, failed = outcomes["passed"], outcomes["failed"]
        if failed:
            cells.append(Text(f"{MARKS['failed']}{name} {failed}/{held + failed}", style=COLOURS["failed"]))
        elif held:
            cells.append(Text(f"{MARKS['passed']}{name} {held}", style=COLOURS["passed"]))
    return cells


def _refused(report: Report) -> Iterator[str]:
    reasons = report.reasons()
    if report.checked_part is None and len(report.cases) > 1:
        if reasons:
            n = len(report.refused) or len({r.case for r in report.results if r.outcome == "refused"})
            yield f"{n} combinations are refused, each with its reason in the report"
        return
    for why, what in list(reasons.items())[:MAX_LINES]:
        yield f"refused: {', '.join(what)}: {why}"


def _skipped(report: Report) -> Iterator[str]:
    """Lines on requested checks that applied to no model, and why."""
    applied = {r.check for r in report.results if r.outcome in ("passed", "failed")}
    skipped = (r for r in report.results if r.outcome == "skipped" and r.message != NO_TWIN)
    reasons = Counter((r.check, r.message) for r in skipped if r.check not in applied)
    if report.requested_checks is not None:
        for (check, why), n in reasons.most_common(MAX_LINES):
            yield f"skipped: {check}: {why}{f' ({n} models)' if n > 1 else ''}"


def _failed(report: Report) -> Iterator[tuple[str, str]]:
    """(line, style) of failures, grouped by the command that reproduces them."""
    groups: dict[str, list[Result]] = {}
    for r in report.failed:
        groups.setdefault(r.command, []).append(r)
    for command, some in list(groups.items())[:MAX_LINES]:
        more = f" (and in {len(some) - 1} other models)" if len(some) > 1 else ""
        case = report.cases[some[0].case]
        where = (
            case.name
            if case.kind not in ("pair", "part")
            else as_words(case.parts)
            if len(case.parts) < 4
            else case.name
        )
        yield f"{MARKS['failed']} {some[0].check}: {some[0].message}  [{where}{more}]", "red"
        yield f"  {command}", "cyan"
    if len(groups) > MAX_LINES:
        yield f"and {len(groups) - MAX_LINES} more, in the report", "red"
