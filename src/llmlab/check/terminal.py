"""The matrix in a terminal: parts in colours, checks in numbers, and what failed with the command that shows it again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llmlab.check.case_checks import BUILT
from llmlab.check.covering_array import as_words
from llmlab.check.page import checked_parts
from llmlab.check.report import MARKS, Report
from llmlab.check.request import SLOTS
from llmlab.check.subject import Result
from llmlab.runs.record import shown
from llmlab.training.progress import duration

COLOURS = {"failed": "red", "passed": "green", "refused": "yellow", "skipped": "dim", "": "dim"}
MAX_LINES = 12  # reasons and failures that are shown; the page has all


def show(report: Report) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    console.print(_matrix(report))
    for line in _refused(report):
        console.print(Text(line, style="yellow"), soft_wrap=True)
    for line in _skipped(report):
        console.print(Text(line, style=COLOURS["skipped"]), soft_wrap=True)
    for line, style in _failed(report):
        console.print(Text(line, style=style), soft_wrap=True)
    says, style = _verdict(report)
    console.print(Text(says, style=style))


def show_files(files: Sequence[Path]) -> None:
    from rich.console import Console
    from rich.text import Text

    for file in files:
        Console(highlight=False).print(Text(f"report: {shown(file)}", style="cyan"), soft_wrap=True)


def _verdict(report: Report) -> tuple[str, str]:
    n, failed = len(report.cases), report.failed
    asked = sum(r.outcome in ("passed", "failed") and not _is_incidental(report, r) for r in report.results)
    models, checks = f"{n} model{'s' * (n != 1)}, {duration(report.seconds)}", f"check{'s' * (asked != 1)}"
    if failed:
        says = f"{len(failed)} of {asked} {checks} failed in {len({r.case for r in failed})} of {models}"
        return says, "bold red"
    if asked:
        return (f"all {asked} checks hold: {models}" if asked > 1 else f"the check holds: {models}"), "bold green"
    refused = any(r.outcome == "refused" for r in report.results)
    return f"refused: {models}" if refused else f"nothing was checked: {models}", "bold yellow"


def _is_incidental(report: Report, r: Result) -> bool:
    """That a model can be built is asked of all; where checks were typed it is no answer."""
    return (
        r.check == BUILT
        and r.outcome == "passed"
        and report.requested_checks is not None
        and BUILT not in report.requested_checks
    )


def _matrix(report: Report) -> Any:
    """A line a slot, its parts coloured by what became of them; one for the families, and one for the checks."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    blamed = _failing_parts(report)
    by_slot: dict[str, list[Text]] = {}
    for item in checked_parts(report):
        found = {report.outcome_of_case(name) for name in report.cases_with(item)}
        outcome = next((o for o in MARKS if o in found), "")
        if outcome == "failed" and blamed and not any(item in some for some in blamed):
            outcome = "passed"  # it was in a model that fails, but the model fails without it too
        elif (
            report.checked_part not in (None, item)
            and outcome not in ("failed", "passed")
            and any(item in p for p in report.refused)
        ):
            outcome = "refused"  # it can't meet the one that was asked about
        by_slot.setdefault(item[0], []).append(Text(f"{MARKS[outcome]}{item[1]}", style=COLOURS[outcome]))
    if report.checked_part is not None:  # what it can't meet was in no model
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


def _checks(report: Report) -> list[Any]:
    """Each check that had something to ask, and of how many models it holds."""
    from rich.text import Text

    found = []
    for name in report.checks:
        outcomes = Counter(r.outcome for r in report.results if r.check == name)
        held, failed = outcomes["passed"], outcomes["failed"]
        if failed:
            found.append(Text(f"{MARKS['failed']}{name} {failed}/{held + failed}", style=COLOURS["failed"]))
        elif held:
            found.append(Text(f"{MARKS['passed']}{name} {held}", style=COLOURS["passed"]))
    return found


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
    """Of the checks that were typed those that no model was asked, and why."""
    asked = {r.check for r in report.results if r.outcome in ("passed", "failed")}
    reasons = Counter((r.check, r.message) for r in report.results if r.outcome == "skipped" and r.check not in asked)
    if report.requested_checks is not None:
        for (check, why), n in reasons.most_common(MAX_LINES):
            yield f"skipped: {check}: {why}{f' ({n} models)' if n > 1 else ''}"


def _failed(report: Report) -> Iterator[tuple[str, str]]:
    """Failures by the command that shows them again."""
    groups: dict[str, list[Any]] = {}
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
