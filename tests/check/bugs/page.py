"""The section of docs/conformance.md that lists the bugs, written anew: python -m bugs, in tests/check."""

from __future__ import annotations

from pathlib import Path

from bugs import every
from llmlab.check.page import MATRIX, PRESERVED
from llmlab.files import write_atomic
from llmlab.formatting import markdown_table

FILE = Path(__file__).parents[3] / "docs" / f"{MATRIX}.md"


def section() -> str:
    rows = [[bug.problem, ", ".join(f"{check} ({where})" for check, where in bug.caught.items())] for bug in every()]
    said = [
        PRESERVED,
        "",
        f"{len(rows)} bugs as they were found in published code or are easily made. A test puts each into the code of "
        "llmlab and sees that these checks, of the models in brackets, fail then and only then. Others may fail too.",
        "",
        *markdown_table(["bug", "caught by"], rows),
    ]
    return "\n".join(said) + "\n"


def write() -> None:
    before = FILE.read_text(encoding="utf-8").partition(PRESERVED)[0].rstrip() if FILE.exists() else "# Conformance"
    write_atomic(FILE, f"{before}\n\n{section()}")
