"""Baselines: the checks and tests that unchanged files are asked, and the lines that each runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TypeVar

from mutants import by_check, by_tests, world
from mutants.by_check import Task
from mutants.by_tests import Test
from mutants.forks import Ended, Write, call_in_fork
from mutants.store import Store, key_of
from mutants.targets import ROOT, group_of, tests_of

HOUR = 3600.0
CHECKS = (ROOT / "src/llmlab/check",)  # a check's outcome depends on the file and on these
TESTING = ROOT / "tests/conftest.py"


class BaselineFailed(Exception):
    """An unchanged file fails a check or a test."""


@dataclass
class Baselines:
    """Checks and tests of the files of a run. Tests are run once for all files of a group."""

    store: Store
    files: Sequence[str]
    slow: bool = False
    names: str | None = None  # of checks, as in `llmlab check checks=...`; None for all
    _checks: dict[tuple[str, ...], list[dict]] = field(default_factory=dict)  # recorded, by words

    def words(self, file: str) -> list[str]:
        """Arguments of `llmlab check`, a call each."""
        group = group_of(file)
        assert group is not None
        return list(group.words) or by_check.words_of(world.parts_of(file))

    def key(self, file: str, by: str) -> str:
        """A hash of all that the outcome of the file's mutants depends on, as far as it is likely to change."""
        if by == "check":
            return key_of([ROOT / file, *CHECKS], *self.words(file), *filter(None, [self.names]))
        return key_of([ROOT / file, TESTING, *(ROOT / name for name in tests_of(file))], str(self.slow))

    def checks(self, file: str) -> list[Task]:
        """Checks of a file that pass. Files with the same `words` are recorded together."""
        if not (words := self.words(file)):
            return []
        if tuple(words) not in self._checks:
            some = [f for f in self.files if self.words(f) == words]

            def record(write: Write) -> None:
                by_check.record(words, self.names, world.put_instrumented(some), write)

            key = key_of([*(ROOT / f for f in some), *CHECKS], *words, *filter(None, [self.names]))
            self._checks[tuple(words)] = self._kept(f"check-{key}", record, file)
        lines = self._checks[tuple(words)]
        return _sound(file, [Task(**{**line, "lines": set(line["lines"].get(file, ()))}) for line in lines])

    def tests(self, file: str) -> list[Test]:
        names = tests_of(file)
        group = group_of(file)
        assert group is not None
        found = []
        for line in self._recorded[group.name]:
            # A test that reads the default of an option from the text of the file runs no line of it.
            always = line["name"].partition("::")[0] in group.always
            if line["name"].partition("::")[0] in names and (always or file in line["lines"]):
                found.append(Test(**{**line, "lines": set(line["lines"].get(file, ()))}))
        return _sound(file, found)

    @cached_property
    def _recorded(self) -> dict[str, list[dict]]:
        """{group: its tests, with {file: lines} for each}."""
        found = {}
        for name in dict.fromkeys(g.name for f in self.files if (g := group_of(f))):
            some = [f for f in self.files if (g := group_of(f)) and g.name == name]
            tests = list(dict.fromkeys(t for f in some for t in tests_of(f)))

            def record(write: Write, some: list[str] = some, tests: list[str] = tests) -> None:
                by_tests.record(tests, self.slow, world.put_instrumented(some), write)

            key = key_of([*(ROOT / f for f in some), TESTING, *(ROOT / t for t in tests)], str(self.slow))
            found[name] = self._kept(f"tests-{key}", record, name)
        return found

    def _kept(self, name: str, record: Callable[[Write], None], what: str) -> list[dict]:
        lines = self.store.baseline(name)
        if lines is None:

            def call(write: Write) -> None:
                world.own_folder()
                record(write)

            ended = call_in_fork(call, HOUR)
            if ended.how != "done":
                raise BaselineFailed(f"{what}: unchanged, it can't be asked: {why(ended)}")
            lines = ended.lines
            self.store.keep(name, lines)
        return lines


T = TypeVar("T", Task, Test)


def _sound(file: str, asked: list[T]) -> list[T]:
    """Those that passed. BaselineFailed if one failed."""
    if wrong := [a for a in asked if a.outcome == "failed"]:
        names = ", ".join(
            " ".join(getattr(a, f.name) for f in fields(a) if f.name in ("name", "check")) for a in wrong[:5]
        )
        raise BaselineFailed(f"{file}: {len(wrong)} fail without a change: {names}")
    return [a for a in asked if a.outcome == "passed"]


def why(ended: Ended) -> str:
    """The failure that a child ended with; "" for none."""
    for line in ended.lines:
        if "killer" in line:
            return f"{' '.join(line['killer'])}: {line['message']}"[:300]
        if "error" in line:
            return str(line["error"])
    return "" if ended.how == "done" else ended.how
