"""A mutant: one small change of one file, with a stable id and a line that describes it."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from mutants.operators import Change, changes

SHOWN, CONTEXT = 72, 24  # characters of source in a description, and those around a difference in a longer one


@dataclass(frozen=True)
class Mutant:
    """A change of a file.

    `start` and `end`: byte offsets of what `new` replaces; `before` and `after`: what a reader is shown; `statement`: line of
    the innermost statement around it; `ordinal`: of several by one operator at one place.
    """

    file: str
    line: int
    column: int
    operator: str
    ordinal: int
    before: str
    after: str
    start: int
    end: int
    new: str
    statement: int

    @property
    def id(self) -> str:
        return f"{self.file}:{self.line}:{self.column}:{self.operator}:{self.ordinal}"

    @property
    def change(self) -> str:
        return f"{self.before} -> {self.after}"

    def text(self, source: str) -> str:
        """The whole file with the change."""
        data = source.encode()
        return (data[: self.start] + self.new.encode() + data[self.end :]).decode()


def mutants_of(file: str, source: str) -> list[Mutant]:
    """All mutants of a file in the order of its lines, without those that are syntactically equal to it or to another."""
    tree = ast.parse(source)
    starts = _line_starts(source)
    seen, found = {_digest(source)}, []
    counts: dict[tuple[int, int, str], int] = {}
    for change in sorted(_changes_with_statements(tree), key=lambda c: (c[0].node.lineno, c[0].node.col_offset)):
        what, statement = change
        node = what.node
        key = (node.lineno, node.col_offset, what.operator)
        assert node.end_lineno is not None and node.end_col_offset is not None
        counts[key] = counts.get(key, 0) + 1
        mutant = Mutant(
            file,
            node.lineno,
            node.col_offset,
            what.operator,
            counts[key],
            *shortened(what.before, what.after),
            starts[node.lineno - 1] + node.col_offset,
            starts[node.end_lineno - 1] + node.end_col_offset,
            what.new,
            statement,
        )
        try:
            digest = _digest(mutant.text(source))
        except SyntaxError:
            continue
        if digest not in seen:
            seen.add(digest)
            found.append(mutant)
    return found


def _changes_with_statements(tree: ast.Module) -> Iterator[tuple[Change, int]]:
    lines: dict[int, int] = {}  # id of a node: line of its innermost statement
    for node in ast.walk(tree):  # breadth first, so that inner statements come later
        if isinstance(node, ast.stmt):
            for inner in ast.walk(node):
                lines[id(inner)] = node.lineno
    for change in changes(tree):
        yield change, lines.get(id(change.node), change.node.lineno)


def _line_starts(source: str) -> list[int]:
    """Byte offset at which each line begins; `ast` counts columns in bytes."""
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return starts


def _digest(source: str) -> str:
    return hashlib.sha256(ast.dump(ast.parse(source)).encode()).hexdigest()


def shortened(before: str, after: str) -> tuple[str, str]:
    """Both on one line, cut down to what differs where they are long."""
    one, other = " ".join(before.split()), " ".join(after.split())
    if max(len(one), len(other)) <= SHOWN:
        return one, other
    start = max(0, _common(one, other) - CONTEXT)
    end = max(0, _common(one[start:][::-1], other[start:][::-1]) - CONTEXT)
    return _cut(one, start, end), _cut(other, start, end)


def _common(one: str, other: str) -> int:
    """Characters at the beginning that both have."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _cut(text: str, start: int, end: int) -> str:
    middle = text[start : len(text) - end]
    if len(middle) > SHOWN:
        middle = f"{middle[: SHOWN // 2]} ... {middle[len(middle) - SHOWN // 2 :]}"
    return f"{'...' if start else ''}{middle}{'...' if end else ''}"
