"""Numbers and tables as people read them: in the terminal, in Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence


def power_of_ten(value: float) -> str:
    """ "2.61e12"."""
    # Python writes exponents with a sign and two digits at least.
    return f"{value:.2e}".replace("e+0", "e").replace("e+", "e") if value >= 1e6 else f"{value:,.0f}"


def large(value: float) -> str:
    """ "1.07M"."""
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if value >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:,.0f}"


def markdown_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool] = (), raw: bool = False
) -> list[str]:
    """The lines of a table; of numeric columns what they hold stands on the right. raw: cells are Markdown already."""
    numeric = numeric or [False] * len(head)
    write = (lambda s: s) if raw else cell
    line = "| " + " | ".join("---:" if n else "---" for n in numeric) + " |"
    return [f"| {' | '.join(map(cell, head))} |", line, *(f"| {' | '.join(map(write, r))} |" for r in rows)]


def escaped(words: str) -> str:
    """Text as it stands, in Markdown: names have underscores and stars, which would mark them as emphasis.

    Not so backquotes, between which a text may have code.
    """
    # $ begins a formula on GitHub, and ~~ strikes out.
    return re.sub(r"[\\_*\[\]~$]", r"\\\g<0>", words.replace("&", "&amp;").replace("<", "&lt;"))


def cell(words: str) -> str:
    bold = words.startswith("**") and words.endswith("**")
    inner = escaped(words[2:-2] if bold else words).replace("|", "\\|").replace("\n", " ")
    return f"**{inner}**" if bold else inner
