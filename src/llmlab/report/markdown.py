"""report.md: the report as GitHub renders it."""

from __future__ import annotations

from collections.abc import Sequence

from llmlab.formatting import cell, escaped, markdown_table
from llmlab.report import build, rows, table
from llmlab.report.build import Report


def text(report: Report, picture: str | None) -> str:
    """The whole file. picture: the main figure's name beside it."""
    said = [f"# {escaped(report.title)}", "", escaped(table.headline(report)), ""]
    said += _notices(table.notices(report))
    for part in report.tables:
        if len(report.tables) > 1:
            said += [f"## {escaped(part.title)}", ""]
        said += [f"- {escaped(sentence)}" for _, sentence in table.sentences(part)]
        # Without the blank line what follows would belong to the list.
        said += [""] * bool(table.sentences(part))
        said += [*_notices(table.notices(report, part)), *_variants(part), ""]
    if picture:
        said += [f"![{escaped(report.title)}: curves, differences, and loss against FLOPs]({picture})", ""]
    said += [f"- {escaped(note)}" for note in report.notes] + [""] * bool(report.notes)
    if grid := table.grid(report):
        head, body = grid
        said += [f"## The grid of {escaped(head[0])}", "", "Means over seeds (how many); * is the chosen one.", ""]
        said += [*markdown_table(["variant", *head[1:]], body, [False] + [True] * (len(head) - 1)), ""]
    if answers := table.answers(report):
        said += ["## Answers", "", "To held-out prompts, at the last validation of one run of each.", ""]
        said += [*markdown_table(*answers, [False, False, False, True, True]), ""]
    if commands := table.commands(report):
        # In a fence, as _ and * of a command would be emphasis.
        said += ["## What was asked", "", "```", *commands, "```", ""]
    if method := build.method(report):
        said += ["## How to read it", "", *(f"- {line}" for line in method), ""]
    head, body, links = table.lines(report)
    body = [[f"[{cell(r[0])}]({link})", *map(cell, r[1:])] for r, link in zip(body, links, strict=True)]
    said += [
        "## All runs",
        "",
        *markdown_table(head, body, [False, False, True, True, True, True, False, False], raw=True),
    ]
    if report.keys:
        names = [r.name for r in report.rows]
        body = [[key, *(values.get(n) or "" for n in names)] for key, values in report.keys.items()]
        keys = markdown_table(["key", *names], body, [False] * (len(names) + 1))
        many = f"<details><summary>{len(body)} keys</summary>"
        said += [
            "",
            "## The keys that differ",
            "",
            # GitHub reads Markdown inside of <details> behind a blank line only.
            *([many, "", *keys, "", "</details>"] if table.folded(report) else keys),
        ]
    return "\n".join(said) + "\n"


def _notices(lines: Sequence[str]) -> list[str]:
    return [x for line in lines for x in (f"> **Note:** {escaped(line)}", "")]


def _variants(part: rows.Table) -> list[str]:
    cells = table.columns(part)
    body = [list(row) for row in zip(*(c.cells for c in cells), strict=True)]
    for row, shown in zip(part.rows, body, strict=True):
        if row.verdict in ("better", "worse"):
            shown[1] = f"**{shown[1]}**"
    return markdown_table([c.name for c in cells], body, [c.numeric for c in cells])
