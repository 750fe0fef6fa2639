"""The report in a terminal: verdict, notices, table."""

from __future__ import annotations

from pathlib import Path

from llmlab.report import rows, table
from llmlab.report import verdict as say
from llmlab.report.build import Report
from llmlab.report.collect import PROBE
from llmlab.report.measured import metric_title
from llmlab.runs.record import relative_path

STYLES = {"better": "green", "worse": "red", "identical": "cyan"}
GAP = 3
# What a terminal too narrow for all does without, one after the other: the sentences above the table have the numbers.
CUTS = ("tokens", "memory", "probes", "verdict", "tokens/s", "p (Holm)", "difference", "FLOPs", "parameters")


def show(report: Report, files: list[Path]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # rich colours numbers, paths and quoted words by itself unless told not to.
    console = Console(highlight=False)
    # Text, not str: rich takes [heads,bias] in a str for markup, and prints nothing of it.
    console.print(Text(report.title, style="bold"))
    console.print(Text(table.headline(report)))
    for notice in table.notices(report):
        console.print(Text(f"note: {notice}", style="yellow"))
    for part in report.tables:
        if len(report.tables) > 1:
            console.print(Text(f"\n{part.title}", style="bold"))
        for word, sentence in table.sentences(part):
            console.print(Text(f"  {sentence}", style=STYLES.get(word, "")))
        for notice in table.notices(report, part):
            console.print(Text(f"note: {notice}", style="yellow"))
        cells = columns(part, console.width)
        view = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
        for column in cells:
            # Names are folded, not cut: paths differ at their ends.
            side, cut = ("right", "ellipsis") if column.numeric else ("left", "fold")
            view.add_column(column.name, justify=side, no_wrap=column.numeric, overflow=cut)  # type: ignore[arg-type]
        for row, cell in zip(part.rows, zip(*(c.cells for c in cells), strict=True), strict=True):
            view.add_row(*map(Text, cell), style=STYLES.get(row.verdict))
        console.print(view)
    for note in report.notes:
        console.print(Text(f"note: {note}", style="dim"))
    for run in report.runs:
        if run.why is not None and run.status != "completed":
            console.print(Text(f"not counted: {run.name}: {run.why}", style="dim"), soft_wrap=True)
    # soft_wrap: a path that the terminal itself breaks can still be copied whole.
    for file in files:
        console.print(Text(f"report: {relative_path(file)}", style="cyan"), soft_wrap=True)


def columns(part: rows.Table, width: int) -> list[table.Column]:
    """The columns that fit into `width`, the verdict last: it may take several lines."""
    names = [r.name for r in part.rows]
    verdicts = ["baseline" if r.is_baseline and r.n else r.short for r in part.rows]
    found = {c.name: c for c in table.columns(part)}
    found["variant"] = found["variant"]._replace(cells=names)
    found["verdict"] = found.pop("verdict")._replace(cells=verdicts)
    for name in CUTS:
        if _width(list(found.values()), max(24, width // 3)) <= width:
            break
        if name == "probes":
            others = [n for n in found if n.startswith(PROBE) and n != metric_title(part.metric)]
            found = {n: c for n, c in found.items() if n not in others}
        if name not in found:
            continue
        if name == "verdict":
            found[name] = found[name]._replace(cells=[r.verdict for r in part.rows])
        elif name == "difference":
            means = [r.comparison.mean if r.comparison else None for r in part.rows]
            short = ["" if m is None else say.signed(m, part.digits) for m in means]
            found[name] = found[name]._replace(cells=short)
        else:
            del found[name]
    return list(found.values())


def _width(columns: list[table.Column], most: int) -> int:
    """most: of the first column, whose longer names take several lines."""
    first, *rest = (max(map(len, [c.name, *c.cells])) + GAP for c in columns)
    return min(first, most + GAP) + sum(rest) - GAP
