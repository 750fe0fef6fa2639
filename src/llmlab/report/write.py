"""Writing a report: the terminal's table, report.html, report.md, report.json and report.png."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from pathlib import Path

from llmlab.errors import UserError
from llmlab.files import write_atomic
from llmlab.report import figures, html, markdown, terminal
from llmlab.report.build import build
from llmlab.report.collect import SWEEP


def write(
    folders: Sequence[Path],
    *,
    out: Path | None = None,
    baseline: str | None = None,
    metric: str | None = None,
    tune: str | None = None,
    show: bool = True,
) -> dict:
    """Print the table and the verdict, and write report.html, .md, .json and .png into `out`.

    folders: every run folder below them is read. out: None is the first folder if it is a sweep, else ./report.
    baseline, metric, tune: as on the command line.
    Returns the report as plain values. UserError if there is no run or no such baseline, metric or key.
    """
    if out is None:
        first = Path(folders[0])
        out = first if (first / SWEEP).is_file() else Path("report")
    report = build([Path(f) for f in folders], out, asked=baseline, metric=metric, tune=tune)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"out={out}: no folder can be made there: {e.strerror}") from e
    picture = figures.picture(report.tables[0]) if report.tables else None
    plain = report.plain()
    if picture is not None:
        write_atomic(out / "report.png", picture)
    write_atomic(out / "report.json", json_module.dumps(plain, indent=1) + "\n")
    write_atomic(out / "report.md", markdown.text(report, "report.png" if picture else None))
    write_atomic(out / "report.html", html.page(report))
    if show:
        terminal.show(report, [out / "report.html", out / "report.md"])
    return plain
