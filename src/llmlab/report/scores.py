"""A table of runs by a reward, as text, Markdown, JSON and one HTML file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NotRequired, TypedDict

from llmlab.files import write_atomic
from llmlab.formatting import escaped, markdown_table
from llmlab.report import html
from llmlab.runs.scores import Answered, Measured

FILES = ("table.md", "report.html", "table.json")
HEAD = ("", "true reward", "KL", "win rate", "answers")


class Row(TypedDict):
    """A run, or the best of several answers of one. kl_at_most: in place of a KL that is bounded only."""

    name: str
    run: str
    reward: Measured
    kl: NotRequired[Measured]
    kl_at_most: NotRequired[float]
    no_kl: NotRequired[str]
    win_rate: NotRequired[Measured]
    answers: int


class Asked(TypedDict):
    """words: of `llmlab eval`; digests: of the stages, by which a table is known to be of these runs."""

    words: list[str]
    digests: dict[str, str]


class Table(TypedDict):
    title: str
    asked: Asked
    commands: list[str]
    notes: list[str]
    rows: list[Row]


def cells(row: Row) -> list[str]:
    kl = _shown(row["kl"]) if "kl" in row else f"at most {row['kl_at_most']:.2f}" if "kl_at_most" in row else "-"
    win = _shown(row["win_rate"]) if "win_rate" in row else "-"
    return [row["name"], _shown(row["reward"]), kl, win, f"{row['answers']:,}"]


def _shown(of: Measured) -> str:
    ends = "" if of["low"] is None else f" [{of['low']:.3f}, {of['high']:.3f}]"
    return f"{of['mean']:.3f}{ends}"


def text(table: Table) -> list[str]:
    """Lines for the terminal."""
    rows = [list(HEAD), *map(cells, table["rows"])]
    widths = [max(len(r[i]) for r in rows) for i in range(len(HEAD))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    return [*lines, "", *table["notes"]]


def write(folder: Path, table: Table, answers: Sequence[tuple[str, Sequence[Answered]]]) -> list[Path]:
    """table.json, table.md and report.html. answers: some of each run, by its name."""
    body = [cells(r) for r in table["rows"]]
    numeric = [False, True, True, True, True]
    said = [f"# {escaped(table['title'])}", "", *markdown_table(HEAD, body, numeric), ""]
    said += [*(f"- {escaped(note)}" for note in table["notes"]), "", "```", *table["commands"], "```", ""]
    files = {
        "table.md": "\n".join(said),
        "report.html": _page(table, body, answers),
        # Last: by it a reader, and a pipeline that is begun again, know that the table is whole.
        "table.json": json.dumps(table, indent=1) + "\n",
    }
    for name, content in files.items():
        write_atomic(folder / name, content)
    return [folder / name for name in files]


def _page(table: Table, body: Sequence[Sequence[str]], answers: Sequence[tuple[str, Sequence[Answered]]]) -> str:
    parts = [html.table_of(HEAD, body, numeric=range(1, len(HEAD))), html.items(table["notes"])]
    rows = [[name, a["prompt"], a["answer"], f"{a['reward']:g}"] for name, some in answers for a in some]
    if rows:
        parts += ["<h2>Answers</h2><p>The first that were drawn.</p>"]
        parts.append(html.table_of(["", "prompt", "answer", "true reward"], rows, numeric=(3,)))
    parts.append(f"<h2>What was asked</h2><pre>{escape(chr(10).join(table['commands']))}</pre>")
    return html.document(table["title"], parts)
