"""The mutants of one file, asked in forked children until a check or a test fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from mutants import by_check, by_tests, serve, world
from mutants.baseline import HOUR, BaselineFailed, Baselines, why
from mutants.by_check import Task
from mutants.by_tests import Test
from mutants.forks import Ended, Forks, Write, call_in_fork
from mutants.mutant import Mutant
from mutants.store import Outcome, Store
from mutants.targets import ROOT

PATIENCE, LEAST = 5.0, 20.0  # a mutant may take so many times what the file takes, and so many seconds in any case
TRIAL = 15  # checks or tests that the unchanged file is asked again as a mutant is
Tell = Callable[[Mutant, Outcome], None]


class Asker:
    """Asks the mutants of one file. by: "check" or "tests"."""

    def __init__(self, file: str, by: str, baselines: Baselines, jobs: int):
        self.file, self.by, self.baselines, self.jobs = file, by, baselines, jobs
        self.store: Store = baselines.store
        self.source = (ROOT / file).read_text(encoding="utf-8")
        self.inside = serve.lines_in_functions(self.source)
        self.declared = world.declared(file)
        self.key = baselines.key(file, by)
        self.asked: Sequence[Task] | Sequence[Test] = []

    def outcome(self, mutant: Mutant) -> Outcome | None:
        return self.store.get(mutant.id, self.by, self.key)

    def prepare(self) -> None:
        """Ask the file as it is, once to see what runs which line and then as a mutant is asked. BaselineFailed if it fails."""
        asked = self.baselines.checks(self.file) if self.by == "check" else self.baselines.tests(self.file)
        self.asked = asked
        for fresh in (False, True) if self.declared else (False,):
            ended = call_in_fork(self._call(self.source, self._ordered(asked)[:TRIAL], fresh), HOUR)
            if is_killed(ended):
                raise BaselineFailed(f"{self.file}: killed without a change: {why(ended)}")

    def run(self, mutants: Sequence[Mutant], tell: Tell, end: float) -> None:
        """Ask these mutants, several at a time. end: on time.monotonic(), after which none is begun."""
        with Forks[Mutant](self.jobs) as forks:
            for mutant in mutants:
                if forks.full:
                    self._collect(forks, tell)
                if time.monotonic() > end:
                    break
                if asked := self.covering(mutant):
                    limit = LEAST + PATIENCE * sum(a.seconds for a in asked)
                    forks.start(mutant, self._call(mutant.text(self.source), asked, None), limit)
                else:
                    self._tell(mutant, False, "not reached", 0.0, tell)
            while forks.children:
                self._collect(forks, tell)

    def covering(self, mutant: Mutant) -> Sequence[Task] | Sequence[Test]:
        """What runs the statement of the mutant; everything, where it runs as the file is imported."""
        if mutant.statement not in self.inside:
            return self._ordered(self.asked)
        return self._ordered([a for a in self.asked if mutant.statement in a.lines])

    def _ordered(self, asked: Sequence[Task] | Sequence[Test]) -> Sequence[Task] | Sequence[Test]:
        """What is the likeliest to fail for its time first. Tests stay in their order within a file, for their fixtures."""
        if self.by == "check":
            return sorted(asked, key=lambda a: -a.worth)
        files: dict[str, list[Test]] = {}
        for test in asked:
            files.setdefault(test.name.partition("::")[0], []).append(test)
        rank = {
            f: (sum(t.kills for t in some) + 0.1) / sum(t.seconds + 0.05 for t in some) for f, some in files.items()
        }
        return [test for file in sorted(files, key=lambda f: -rank[f]) for test in files[file]]

    def _call(self, text: str, asked: Sequence[Task] | Sequence[Test], fresh: bool | None) -> Callable[[Write], None]:
        """What a child does. fresh: import all of llmlab anew; None: if the parts declare something else than before."""

        def call(write: Write) -> None:
            folder = world.own_folder()
            world.put(self.file, text, folder / "mutant.json" if self.by == "tests" else None)
            if fresh or (fresh is None and world.declared(self.file) != self.declared):
                world.forget_all()
            by_check.ask(asked, write) if self.by == "check" else by_tests.ask(asked, folder, write)

        return call

    def _collect(self, forks: Forks[Mutant], tell: Tell) -> None:
        for ended in forks.ended():
            killers = [line["killer"] for line in ended.lines if "killer" in line]
            for a in self.asked:
                a.kills += [a.name, getattr(a, "check", None)] in killers or [a.name] in killers
            self._tell(ended.key, is_killed(ended), why(ended), round(ended.seconds, 2), tell)

    def _tell(self, mutant: Mutant, killed: bool, how: str, seconds: float, tell: Tell) -> None:
        outcome = Outcome(mutant.id, self.by, killed, how, seconds, self.key)
        self.store.add(outcome)
        tell(mutant, outcome)


def is_killed(ended: Ended) -> bool:
    return ended.how != "done" or bool(ended.lines)
