"""Rows of a table in text (.csv, .tsv), whose first row names the columns."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any

from llmlab.data.account import printable
from llmlab.data.readers.item import (
    CELLS,
    DAMAGED,
    EXCERPT,
    LONGEST,
    TOO_LONG,
    Broken,
    Input,
    Item,
    Unreadable,
    Wanted,
    lines,
    not_utf8,
)

SHOWN = 12  # columns that an error names


def comma_separated(file: Input, wanted: Wanted) -> Iterator[Item]:
    """Rows of a .csv file as RFC 4180 has them."""
    # strict: without it a quote that is never closed makes one field of the rest of the file.
    return _table(file, "csv", strict=True)


def tab_separated(file: Input, wanted: Wanted) -> Iterator[Item]:
    """Rows of a .tsv file. A quote is a character like any other: GLUE's files have single ones."""
    return _table(file, "tsv", delimiter="\t", quoting=csv.QUOTE_NONE)


def _table(file: Input, ending: str, **how: Any) -> Iterator[Item]:
    # newline="": a quoted field may hold line breaks, which csv wants as they are.
    with file.text("") as f:
        reader = csv.reader(_unmarked(f, file.most), **how)
        header: list[str] | None = None
        while True:
            begins = reader.line_num + 1
            try:
                row = _long_row(reader)
            except csv.Error as e:
                # csv can't say where the next row begins.
                much = "larger than field limit" in str(e)
                why = f"a field has more than {LONGEST:,} characters" if much else str(e)
                raise Unreadable(TOO_LONG if much else DAMAGED, f"not valid .{ending} ({why})", "", begins) from None
            if row is None:
                return
            # csv gives [] for an empty line.
            if not row:
                continue
            bad = next((b for cell in row if (b := not_utf8(cell))), None)
            if header is None:
                if bad is not None:
                    raise Unreadable(bad.reason, bad.error, bad.text, begins)
                header = [name.strip() for name in row]
                if twice := [n for n in header if header.count(n) > 1]:
                    raise Unreadable(DAMAGED, f"two columns are called {twice[0]!r}", "", begins)
            elif bad is not None:
                yield Item(bad, reader.line_num)
            elif (n := len(row)) != len(header):
                error = f"it has {n} value{'s' * (n != 1)}, but the first line names {len(header)} columns"
                named = ", ".join(map(printable, header[:SHOWN]))
                yield Item(Broken(CELLS, f"{error} ({named})", ", ".join(row)[:EXCERPT]), reader.line_num)
            else:
                yield Item(dict(zip(header, row, strict=True)), reader.line_num)


def _unmarked(f: Any, most: int) -> Iterator[str]:
    for number, line in lines(f, most):
        if isinstance(line, Broken):
            raise Unreadable(line.reason, f"a line {line.error}", line.text, number)
        yield line.removeprefix("\ufeff") if number == 1 else line


def _long_row(reader: Iterator[list[str]]) -> list[str] | None:
    """The next row of a reader, whose fields may be long. csv's limit of 131,072 characters is one of the whole process."""
    before = csv.field_size_limit(LONGEST)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(before)
