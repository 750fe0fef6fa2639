"""The report in a terminal: verdict, notices, table."""

from __future__ import annotations

from pathlib import Path

from llmlab.lab.record import shown
from llmlab.lab.report import table
from llmlab.lab.report import verdict as say
from llmlab.lab.report.build import Report

STYLES = {"better": "green", "worse": "red", "identical": "cyan"}
GAP = 3
# What a terminal too narrow for all does without, one after the other: the sentences above the table have the numbers.
CUTS = ("tokens", "memory", "verdict", "tokens/s", "p (Holm)", "difference", "FLOPs", "parameters")


def show(report: Report, files: list[Path]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    console.print(Text(report.title, style="bold"))
    console.print(Text(table.headline(report)))
    for word, sentence in table.sentences(report):
        if word != "not comparable":  # a notice says so
            console.print(Text(f"  {sentence}", style=STYLES.get(word, "")))
    for notice in report.notices:
        console.print(Text(f"note: {notice}", style="yellow"))
    if cells := columns(report, console.width):
        view = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
        for column in cells:
            side, cut = ("right", "ellipsis") if column.numeric else ("left", "fold")  # a path differs at its end
            view.add_column(column.name, justify=side, no_wrap=column.numeric, overflow=cut)  # type: ignore[arg-type]
        for row, cell in zip(report.rows, zip(*(c.cells for c in cells), strict=True), strict=True):
            view.add_row(*map(Text, cell), style=STYLES.get(row.verdict))
        console.print(view)
    for note in report.notes:
        console.print(Text(f"note: {note}", style="dim"))
    for run in report.runs:
        if run.why is not None and run.status != "completed":
            console.print(Text(f"not counted: {run.name}: {run.why}", style="dim"), soft_wrap=True)
    for file in files:  # a path that the terminal itself breaks can still be copied
        console.print(Text(f"report: {shown(file)}", style="cyan"), soft_wrap=True)


def columns(report: Report, width: int) -> list[table.Column]:
    """Those that fit into `width`."""
    if not report.rows:
        return []
    names = [r.name for r in report.rows]
    verdicts = ["baseline" if r.is_baseline and r.n else r.short for r in report.rows]
    found = {c.name: c for c in table.columns(report)}
    found["variant"] = found["variant"]._replace(cells=names)
    found["verdict"] = found["verdict"]._replace(cells=verdicts)
    for name in CUTS:
        if _width(list(found.values())) <= width:
            break
        if name not in found:
            continue
        if name == "verdict":
            found[name] = found[name]._replace(cells=[r.verdict for r in report.rows])
        elif name == "difference":
            means = [r.comparison.mean if r.comparison else None for r in report.rows]
            short = ["" if m is None else say.signed(m, report.digits) for m in means]
            found[name] = found[name]._replace(cells=short)
        else:
            del found[name]
    return list(found.values())


def _width(columns: list[table.Column]) -> int:
    return sum(max(map(len, [c.name, *c.cells])) + GAP for c in columns) - GAP
