"""Objects of JSON: one a line (.jsonl), or a list of them, lists by key, or one behind the other (.json), read as a stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

from llmlab.data.readers.item import (
    EXCERPT,
    LONGEST,
    NOT_JSON,
    TOO_LONG,
    Broken,
    Input,
    Item,
    Unreadable,
    Wanted,
    lines,
    not_utf8,
)
from llmlab.errors import UserError
from llmlab.json_files import Json, loads

CHUNK = 1 << 16  # characters read at once
# Characters at the end of what was read in which an error may come of the end alone: "-Infinity", or half of "\u12ab\u12ab".
EDGE = 16


def json_lines(file: Input, wanted: Wanted) -> Iterator[Item]:
    """An object a line; blank lines are none."""
    with file.text(None) as f:
        for number, line in lines(f, file.most):
            if isinstance(line, Broken):
                yield Item(line, number)
            # A mark in front of every line: files that were put together have one in the middle too.
            elif text := line.strip().removeprefix("\ufeff").strip():
                yield Item(not_utf8(text) or _value(text), number)


def _value(text: str) -> Json | Broken:
    try:
        value: Json = loads(text, "")
    except UserError as e:
        return Broken(NOT_JSON, str(e).removeprefix(": "), text[:EXCERPT])
    return value


def json_rows(file: Input, wanted: Wanted) -> Iterator[Item]:
    """The members of a list, the rows of an object of lists of one length, or objects that follow each other."""
    with file.text(None) as f:
        values = _Values(f)
        first = values.peek()
        if first == "[":
            yield from values.members()
        elif first:
            value = values.next()
            columns = _columns(value) if not values.peek() else None
            if columns is not None:
                names, n = list(columns), len(next(iter(columns.values())))
                for i in range(n):
                    yield Item({name: columns[name][i] for name in names}, i + 1, "record")
                return
            number = 1
            yield Item(value, number, "record")
            while values.peek():
                number += 1
                yield Item(values.next(), number, "record")


def _columns(value: object) -> dict[str, list[Json]] | None:
    if not (isinstance(value, dict) and value):
        return None
    columns = {k: v for k, v in value.items() if isinstance(v, list)}
    return columns if len(columns) == len(value) and len({len(v) for v in columns.values()}) == 1 else None


class _Values:
    """Values of JSON in a stream of text, of which only the one that is read is held."""

    def __init__(self, file: IO[str]):
        self.file, self.buffer, self.at, self.ended = file, "", 0, False
        self.line, self.number = 1, 0
        # The scanner of C, which raises RecursionError for what is nested too deep.
        self.scan = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            while self.at < len(self.buffer):
                c = self.buffer[self.at]
                if not (c.isspace() or c == "\ufeff"):
                    return c
                self.at += 1
            if not self._more():
                return ""

    def _more(self) -> bool:
        """More text behind what is there still; False at the end."""
        if self.ended:
            return False
        left = len(self.buffer) - self.at
        # Twice as much each time, or a long value would be scanned from its beginning once a chunk.
        found = self.file.read(max(CHUNK, left))
        self.line += self.buffer.count("\n", 0, self.at)
        self.buffer, self.at = self.buffer[self.at :] + found, 0
        self.ended = not found
        return bool(found)

    def next(self) -> Json | Broken:
        """The value that begins here. Raises Unreadable for what is none, as nothing tells where the next one begins."""
        self.number += 1
        while True:
            try:
                value, end = self.scan(self.buffer, self.at)
            except json.JSONDecodeError as e:
                cut = e.msg.startswith("Unterminated string") or e.pos >= len(self.buffer) - EDGE
                if cut and len(self.buffer) - self.at <= LONGEST and self._more():
                    continue
                if cut and len(self.buffer) - self.at > LONGEST:
                    raise self._broken(TOO_LONG, f"is a value of more than {LONGEST:,} characters") from None
                line = self.line + self.buffer.count("\n", 0, e.pos)
                raise self._broken(NOT_JSON, f"not valid JSON ({e.msg} in line {line})") from None
            except RecursionError:
                raise self._broken(NOT_JSON, "nested more than 100 levels deep") from None
            except ValueError:  # int() refuses a literal of more than 4,300 digits
                raise self._broken(NOT_JSON, "holds a number of too many digits") from None
            # A number may go on behind what was read.
            if end == len(self.buffer) and not isinstance(value, dict | list) and self._more():
                continue
            text, self.at = self.buffer[self.at : end], end
            return not_utf8(text) or value

    def _broken(self, reason: str, error: str) -> Unreadable:
        return Unreadable(reason, error, self.buffer[self.at : self.at + EXCERPT], self.number)

    def members(self) -> Iterator[Item]:
        """The members of the list that begins here."""
        self.at += 1
        if self.peek() == "]":
            self.at += 1
        else:
            while True:
                value: Any = self.next()
                yield Item(value, self.number, "record")
                c = self.peek()
                self.at += 1
                if c == "]":
                    break
                if c != ",":
                    line = self.line + self.buffer.count("\n", 0, self.at)
                    missing = "Expecting ',' delimiter" if c else "Expecting ']', but the file ends"
                    raise self._broken(NOT_JSON, f"not valid JSON ({missing} in line {line})")
                self.peek()
        if self.peek():
            raise self._broken(NOT_JSON, "not valid JSON (there is more behind the list's end)")
