"""report.md: the report as GitHub renders it."""

from __future__ import annotations

from collections.abc import Sequence

from llmlab.lab.report import build, table
from llmlab.lab.report.build import Report


def text(report: Report, picture: str | None) -> str:
    """The whole file. picture: the main figure's name beside it."""
    said = [f"# {_plain(report.title)}", "", table.headline(report), ""]
    said += [f"- {_plain(sentence)}" for _, sentence in table.sentences(report)]
    said += [""] * bool(table.sentences(report))
    for notice in report.notices:
        said += [f"> **Note:** {_plain(notice)}", ""]
    if report.rows:
        cells = table.columns(report)
        body = [list(row) for row in zip(*(c.cells for c in cells), strict=True)]
        for row, shown in zip(report.rows, body, strict=True):
            if row.verdict in ("better", "worse"):
                shown[-1] = f"**{shown[-1]}**"
        said += [*table_of([c.name for c in cells], body, [c.numeric for c in cells]), ""]
    if picture:
        said += [f"![{_plain(report.title)}: curves, differences, and loss against FLOPs]({picture})", ""]
    said += [f"- {_plain(note)}" for note in report.notes] + [""] * bool(report.notes)
    if grid := table.grid(report):
        head, rows = grid
        said += [f"## The grid of {head[0]}", "", "Means over seeds (how many); * is the chosen one.", ""]
        said += [*table_of(["variant", *head[1:]], rows, [False] + [True] * (len(head) - 1)), ""]
    if commands := table.commands(report):
        said += ["## What was asked", "", "```", *commands, "```", ""]
    if report.keys:
        names = [r.name for r in report.rows]
        said += ["## The keys that differ", ""]
        rows = [[key, *(values.get(n) or "" for n in names)] for key, values in report.keys.items()]
        said += [*table_of(["key", *names], rows, [False] * (len(names) + 1)), ""]
    if method := build.method(report):
        said += ["## How to read it", "", *(f"- {line}" for line in method), ""]
    head, rows, links = table.lines(report)
    rows = [[f"[{_cell(r[0])}]({link})", *map(_cell, r[1:])] for r, link in zip(rows, links, strict=True)]
    said += ["## All runs", "", *table_of(head, rows, [False, False, True, True, True, True, False, False], raw=True)]
    return "\n".join(said) + "\n"


def table_of(
    head: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool] = (), raw: bool = False
) -> list[str]:
    """The lines of a table; of numeric columns what they hold stands on the right. raw: cells are Markdown already."""
    numeric = numeric or [False] * len(head)
    write = (lambda s: s) if raw else _cell
    line = "| " + " | ".join("---:" if n else "---" for n in numeric) + " |"
    return [f"| {' | '.join(map(_cell, head))} |", line, *(f"| {' | '.join(map(write, r))} |" for r in rows)]


def _plain(words: str) -> str:
    """Names have underscores and stars that mean nothing here."""
    return words.replace("\\", "\\\\").replace("_", "\\_").replace("*", "\\*").replace("<", "&lt;")


def _cell(words: str) -> str:
    bold = words.startswith("**") and words.endswith("**")
    inner = _plain(words[2:-2] if bold else words).replace("|", "\\|").replace("\n", " ")
    return f"**{inner}**" if bold else inner
