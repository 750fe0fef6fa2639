"""metrics.csv: what a run measured, by optimizer step; `seconds` is the wall-clock time since training began, and the only
column in which a resumed run differs from one never interrupted. Throughput is in timing.csv.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmlab.errors import UserError
from llmlab.files import write_atomic
from llmlab.json_files import read_text

METRICS, TIMING = "metrics.csv", "timing.csv"


class Table:
    """A CSV file that grows. Its columns are those of the first row ever written; floats are written exactly."""

    def __init__(self, path: Path):
        self.path = path
        self.columns: list[str] | None = None
        if path.exists():
            self.columns = next((cells for _, cells in _lines(path)), None)

    def write(self, row: Mapping[str, Any], columns: Sequence[str]) -> None:
        try:
            # Opened anew for each row: closing flushes, so that readers and a run that is killed have all rows so far.
            with open(self.path, "a", newline="", encoding="utf-8") as f:
                # csv ends lines with \r\n unless told otherwise.
                writer = csv.writer(f, lineterminator="\n")
                if self.columns is None:
                    self.columns = list(columns)
                    writer.writerow(self.columns)
                # repr of a float is the shortest text that reads back as the same one, so that two runs can be compared.
                writer.writerow(["" if row.get(c) is None else repr(row[c]) for c in self.columns])
        except OSError as e:
            raise UserError(f"{self.path} could not be written: {e.strerror}") from e

    def sync(self) -> None:
        if self.path.exists():
            # fsync takes any descriptor of the file: what another has written is brought to the disk too (fsync(2)).
            with open(self.path, "rb") as f:
                os.fsync(f.fileno())


def read(path: Path) -> list[dict[str, float | None]]:
    """Rows of a table; empty cells are None. A torn last row is none; UserError names any other that can't be read."""
    if not path.exists():
        return []
    lines = _lines(path)
    _, header = next(lines, (0, []))
    return [
        {name: _number(cell, name, path, n) for name, cell in zip(header, cells, strict=True)} for n, cells in lines
    ]


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line of the file, its cells); what follows the last line break is torn, or nothing."""
    # Not splitlines, which also breaks at \f, \x1c and U+2028.
    lines = read_text(path).split("\n")[:-1]
    width = None
    for number, line in enumerate(lines, 1):
        try:
            cells = next(csv.reader([line]), [])
        except csv.Error as e:
            # A cell of more than 131,072 characters (csv.field_size_limit).
            raise UserError(f"{path}, line {number}: {e}") from None
        if not cells:
            continue
        width = len(cells) if width is None else width
        if len(cells) != width:
            raise UserError(f"{path}, line {number}: has {len(cells)} cells, but the first line has {width}")
        yield number, cells


def _number(cell: str, name: str, path: Path, line: int) -> float | None:
    try:
        return float(cell) if cell else None
    except ValueError:
        shown = repr(cell if len(cell) <= 40 else f"{cell[:37]}...")
        raise UserError(f"{path}, line {line}: {name[:40]} must be a number, but is {shown}") from None


def last_seconds(path: Path) -> float:
    """`seconds` of the last row; 0 where there is none, or no such column, as in tables of older runs."""
    rows = read(path)
    return (rows[-1].get("seconds") if rows else None) or 0.0


def check(path: Path) -> None:
    """UserError unless rows can go on being written: of whole steps, and of numbers throughout."""
    numbers = [number for number, _ in _lines(path)] if path.exists() else []
    for line, row in zip(numbers[1:], read(path), strict=True):
        step = row.get("step")
        if step is None or not (step >= 0 and step.is_integer()):
            problem = f"is {step:g}" if step is not None else "is missing" if "step" in row else "is no column of it"
            raise UserError(f"{path}, line {line}: step must be a whole number, but {problem}")


def cut(path: Path, step: int, *, keep_validation: bool) -> None:
    """Drop the rows past `step`, a torn last row, and, where not wanted, the validation at `step` itself.

    A run cut short by trainer.max_steps validates at its end, where the whole run would not have.
    """
    if not path.exists():
        return
    check(path)
    text = read_text(path).split("\n")
    numbers = [number for number, _ in _lines(path)]

    def kept(row: dict[str, float | None]) -> bool:
        at = row["step"] or 0
        return at < step or (at == step and (keep_validation or row.get("val_loss") is None))

    rows = [text[number - 1] for number, row in zip(numbers[1:], read(path), strict=True) if kept(row)]
    write_atomic(path, "".join(f"{line}\n" for line in [*(text[n - 1] for n in numbers[:1]), *rows]))


def last_step(path: Path) -> int:
    """The step of the last whole row; 0 where there is none."""
    try:
        # What follows the last line break is torn or empty.
        rows = path.read_text(encoding="utf-8").split("\n")[1:-1]
        return int(rows[-1].split(",")[0]) if rows else 0
    except (OSError, ValueError):
        return 0
