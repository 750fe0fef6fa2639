"""One file's mutants: what is asked of the file as it is, first, and then of each mutant, in forked children."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mutants import by_check, by_tests, world
from mutants.by_check import Task
from mutants.by_tests import Test
from mutants.forks import Ended, Forks, Write, call_in_fork
from mutants.mutant import Mutant
from mutants.store import Outcome, Store, key_of
from mutants.targets import ROOT, group_of, tests_of

PATIENCE, LEAST = 5.0, 20.0  # a mutant may take so many times what the file takes, and so many seconds in any case
HOUR = 3600.0


class BaselineFailed(Exception):
    """The unchanged file does not pass what its mutants are asked."""


class Asker:
    """Asks one file's mutants. `by`: "check" or "tests"."""

    def __init__(self, file: str, by: str, store: Store, jobs: int, slow: bool):
        self.file, self.by, self.store, self.jobs, self.slow = file, by, store, jobs, slow
        self.source = (ROOT / file).read_text(encoding="utf-8")
        group = group_of(file)
        assert group is not None
        self.declared = world.declared(file)
        if by == "check":
            self.selection = list(group.words) or by_check.words_of(world.parts_of(file))
            covering = [ROOT / "src/llmlab/check", ROOT / "tests/check/definitions"]
        else:
            self.selection = tests_of(file)
            covering = [ROOT / name for name in self.selection]
        self.key = key_of([ROOT / file, *(c for c in covering if c.exists())], by, str(slow), *self.selection)
        self.asked: Sequence[Task] | Sequence[Test] = []

    def prepare(self) -> None:
        """Run the selection with the unchanged file, and again as a mutant is run. BaselineFailed if anything fails."""
        if not self.selection:
            return
        name = f"{self.by}-{self.key}"
        lines = self.store.baseline(name)
        if lines is None:
            lines = self._record()
            self.store.keep(name, lines)
        made = [{**line, "lines": set(line["lines"])} for line in lines]
        if self.by == "check":
            self.asked = [Task(**line) for line in made]
        else:
            self.asked = [Test(**line) for line in made]
        if wrong := [a for a in self.asked if a.outcome == "failed"]:
            raise BaselineFailed(f"{self.file}: fails as it is: {', '.join(a.name for a in wrong[:5])}")
        self.asked = [a for a in self.asked if a.lines and a.outcome == "passed"]
        for fresh in (False, True) if self.declared else (False,):
            ended = call_in_fork(lambda write: self._child(self.source, fresh, self.asked[:40], write), HOUR)
            if killed(ended):
                raise BaselineFailed(f"{self.file}: killed without a change: {said(ended)}")

    def _record(self) -> list[dict]:
        def call(write: Write) -> None:
            reached = world.put_instrumented(self.file, self.source)
            if self.by == "check":
                by_check.record(self.selection, reached, write)
            else:
                by_tests.record(self.selection, self.slow, reached, write)

        ended = call_in_fork(call, HOUR)
        if ended.how != "done":
            raise BaselineFailed(f"{self.file}: {' '.join(self.selection)}: {said(ended)}")
        return ended.lines

    def run(self, mutants: Sequence[Mutant], tell: Callable[[Mutant, Outcome], None]) -> None:
        """Ask mutants whose outcome isn't known, several at a time."""
        with Forks[tuple[Mutant, float]](self.jobs) as forks:
            for mutant in mutants:
                if forks.full:
                    self._collect(forks, tell)
                self._start(forks, mutant, tell)
            while forks.children:
                self._collect(forks, tell)

    def _start(
        self, forks: Forks[tuple[Mutant, float]], mutant: Mutant, tell: Callable[[Mutant, Outcome], None]
    ) -> None:
        asked = self.covering(mutant)
        if not asked:
            self._tell(mutant, Outcome(mutant.id, self.by, False, "not reached", 0.0, self.key), tell)
            return
        text, limit = mutant.text(self.source), LEAST + PATIENCE * sum(a.seconds for a in asked)
        forks.start((mutant, limit), lambda write: self._child(text, None, asked, write), limit)

    def covering(self, mutant: Mutant) -> Sequence[Task] | Sequence[Test]:
        """What runs the mutant's statement, the likeliest to fail for its time first; all, where it runs as the file is
        imported."""
        inside = set().union(*(a.lines for a in self.asked)) if self.asked else set()
        imported = mutant.statement not in statements_in_functions(self.source)
        asked = [a for a in self.asked if imported or mutant.statement in a.lines]
        assert imported or asked or mutant.statement not in inside
        if self.by == "check":
            asked.sort(key=lambda a: -a.worth)
        return asked

    def _collect(self, forks: Forks[tuple[Mutant, float]], tell: Callable[[Mutant, Outcome], None]) -> None:
        for ended in forks.ended():
            mutant, _ = ended.key
            for line in ended.lines:
                for a in self.asked:
                    if line.get("killer") in ([a.name], [a.name, getattr(a, "check", "")]):
                        a.kills += 1
            outcome = Outcome(mutant.id, self.by, killed(ended), said(ended), round(ended.seconds, 2), self.key)
            self._tell(mutant, outcome, tell)

    def _tell(self, mutant: Mutant, outcome: Outcome, tell: Callable[[Mutant, Outcome], None]) -> None:
        self.store.add(outcome)
        tell(mutant, outcome)

    def _child(self, text: str, fresh: bool | None, asked: Sequence, write: Write) -> None:
        with tempfile.TemporaryDirectory() as folder:
            note = Path(folder) / "mutant.json" if self.by == "tests" else None
            world.put(self.file, text, False, note)
            if fresh or (fresh is None and world.declared(self.file) != self.declared):
                world.forget_all()
            if self.by == "check":
                by_check.ask(asked, write)
            else:
                by_tests.ask(asked, write)


def statements_in_functions(source: str) -> set[int]:
    """Lines of the statements that run when a function is called."""
    import ast

    lines = set[int]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for statement in node.body:
                lines |= {n.lineno for n in ast.walk(statement) if isinstance(n, ast.stmt)}
    return lines


def killed(ended: Ended) -> bool:
    return ended.how != "done" or bool(ended.lines)


def said(ended: Ended) -> str:
    """The first line that says why a child ended as it did; "" if nothing failed."""
    for line in ended.lines:
        if "killer" in line:
            message = line["message"] if isinstance(line["message"], str) else " ".join(line["message"])
            return f"{' '.join(line['killer'])}: {message}"[:300]
        if "error" in line:
            return str(line["error"])
    return "" if ended.how == "done" else ended.how


def unfinished(mutants: Sequence[Mutant], asker: Asker) -> Iterator[Mutant]:
    for mutant in mutants:
        if asker.store.get(mutant.id, asker.by, asker.key) is None:
            yield mutant
