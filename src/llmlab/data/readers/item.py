"""Items of a file: each a text, an object, or an account of why it is neither."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import IO, NamedTuple

from llmlab.json_files import Json

# Characters of a value of JSON, of a cell of a table, and of a line or a text in a compressed file: a file of some
# kilobytes may hold gigabytes of one letter.
LONGEST = 1 << 28
EXCERPT = 200  # characters of what is broken, which the quarantine shows
NOT_UTF8 = "not UTF-8"
NOT_JSON = "not valid JSON"
TOO_LONG = "too long"
DAMAGED = "damaged files"
CELLS = "rows of another length than the header"
NO_VALUE = "without a plain value"


class Broken(NamedTuple):
    """A document that can't be read: one of a few reasons, what is wrong with this one, and how it begins."""

    reason: str
    error: str
    text: str = ""


class LeftOut(NamedTuple):
    """A file inside an archive that is not read."""

    reason: str


class Unreadable(Exception):
    """The rest of a file can't be read."""

    def __init__(self, reason: str, error: str, text: str = "", number: int | None = None):
        super().__init__(error)
        self.broken, self.number = Broken(reason, error, text[:EXCERPT]), number


class Item(NamedTuple):
    """`value` is the `number`-th `unit` of the file, or all of it where there is no number."""

    value: Json | Broken | LeftOut
    number: int | None = None
    unit: str = "line"
    inside: str = ""  # name of the file in an archive


class Input(NamedTuple):
    """A file to be read, decompressed by `binary`. `path`: where it lies as it is, None for one in a compressed file."""

    binary: Callable[[], IO[bytes]]
    path: str | None

    @property
    def most(self) -> int:
        """Characters of a line or a text; -1 where the file's own size bounds them."""
        return LONGEST if self.path is None else -1

    def text(self, newline: str | None) -> io.TextIOWrapper:
        """The file as text, in which bytes that are no UTF-8 are halves of surrogate pairs."""
        binary = io.BufferedReader(self.binary(), 1 << 16)  # type: ignore[type-var]
        # Windows PowerShell 5 writes UTF-16 with a mark by `>`.
        if binary.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise Unreadable(NOT_UTF8, "is UTF-16 and not UTF-8; convert it with iconv -f utf-16 -t utf-8")
        return io.TextIOWrapper(binary, encoding="utf-8", errors="surrogateescape", newline=newline)


# Picks, of the names of a table's columns, those that are read; None: all.
Wanted = Callable[[Sequence[str]], "list[str] | None"]
Read = Callable[[Input, Wanted], Iterator[Item]]


def not_utf8(text: str) -> Broken | None:
    """The account of a text with a byte in it that is no UTF-8, read with `surrogateescape`."""
    if text.isascii():
        return None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as e:
        at = len(text[: e.start].encode("utf-8", "surrogateescape"))
        shown = text[:EXCERPT].encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        return Broken(NOT_UTF8, f"is not UTF-8 (byte {at} of it)", shown)
    return None


def lines(file: IO[str], most: int) -> Iterator[tuple[int, str | Broken]]:
    """Numbered lines; one of more than `most` characters is broken."""
    number = 0
    while line := file.readline(most):
        number += 1
        if 0 < most <= len(line) and not line.endswith(("\n", "\r")):
            start = line[:EXCERPT]
            while (line := file.readline(most)) and not line.endswith(("\n", "\r")):
                pass
            yield number, Broken(TOO_LONG, f"has more than {most:,} characters", start)
        else:
            yield number, line
