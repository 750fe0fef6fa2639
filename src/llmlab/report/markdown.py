"""report.md: the report as GitHub renders it."""

from __future__ import annotations

from collections.abc import Sequence

from llmlab.report import build, rows, table
from llmlab.report.build import Report


def text(report: Report, picture: str | None) -> str:
    """The whole file. picture: the main figure's name beside it."""
    said = [f"# {_plain(report.title)}", "", table.headline(report), ""]
    said += _notices(table.notices(report))
    for part in report.tables:
        if len(report.tables) > 1:
            said += [f"## {_plain(part.title)}", ""]
        said += [f"- {_plain(sentence)}" for _, sentence in table.sentences(part)]
        said += [""] * bool(table.sentences(part))
        said += [*_notices(table.notices(report, part)), *_variants(part), ""]
    if picture:
        said += [f"![{_plain(report.title)}: curves, differences, and loss against FLOPs]({picture})", ""]
    said += [f"- {_plain(note)}" for note in report.notes] + [""] * bool(report.notes)
    if grid := table.grid(report):
        head, body = grid
        said += [f"## The grid of {head[0]}", "", "Means over seeds (how many); * is the chosen one.", ""]
        said += [*table_of(["variant", *head[1:]], body, [False] + [True] * (len(head) - 1)), ""]
    if commands := table.commands(report):
        said += ["## What was asked", "", "```", *commands, "```", ""]
    if method := build.method(report):
        said += ["## How to read it", "", *(f"- {line}" for line in method), ""]
    head, body, links = table.lines(report)
    body = [[f"[{_cell(r[0])}]({link})", *map(_cell, r[1:])] for r, link in zip(body, links, strict=True)]
    said += ["## All runs", "", *table_of(head, body, [False, False, True, True, True, True, False, False], raw=True)]
    if report.keys:
        names = [r.name for r in report.rows]
        body = [[key, *(values.get(n) or "" for n in names)] for key, values in report.keys.items()]
        keys = table_of(["key", *names], body, [False] * (len(names) + 1))
        many = f"<details><summary>{len(body)} keys</summary>"
        said += [
            "",
            "## The keys that differ",
            "",
            *([many, "", *keys, "", "</details>"] if table.folded(report) else keys),
        ]
    return "\n".join(said) + "\n"


def _notices(lines: Sequence[str]) -> list[str]:
    return [x for line in lines for x in (f"> **Note:** {_plain(line)}", "")]


def _variants(part: rows.Table) -> list[str]:
    cells = table.columns(part)
    body = [list(row) for row in zip(*(c.cells for c in cells), strict=True)]
    for row, shown in zip(part.rows, body, strict=True):
        if row.verdict in ("better", "worse"):
            shown[1] = f"**{shown[1]}**"
    return table_of([c.name for c in cells], body, [c.numeric for c in cells])


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
