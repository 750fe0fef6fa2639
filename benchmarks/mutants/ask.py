"""Runs checks or tests on the mutants of one file, in forked children, until one fails."""

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

PATIENCE, LEAST = 3.0, 10.0  # a mutant may take LEAST seconds, and PATIENCE times as long as the unchanged file
TRIAL = 15  # checks or tests that are run on the unchanged file again, in the way of a mutant's
Tell = Callable[[Mutant, Outcome], None]


class Asker:
    """Asks the mutants of one file. by: "check" or "tests", which is run on them."""

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

    def killed(self, mutant: Mutant) -> bool:
        outcome = self.outcome(mutant)
        return outcome is not None and outcome.killed

    def prepare(self) -> None:
        """Ask the unchanged file, to see what runs which line, and once more in the way of a mutant. Else BaselineFailed."""
        asked = self.baselines.checks(self.file) if self.by == "check" else self.baselines.tests(self.file)
        self.asked = asked
        for fresh in (False, True) if self.declared else (False,):
            ended = call_in_fork(self._call(self.source, self._ordered(asked)[:TRIAL], fresh), HOUR)
            if is_killed(ended):
                raise BaselineFailed(f"{self.file}: killed without a change: {why(ended)}")

    def run(self, mutants: Sequence[Mutant], tell: Tell, end: float) -> None:
        """Ask these mutants, several at a time. end: the time (as time.monotonic()) after which none is begun."""
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
        """Checks or tests that run the statement of the mutant; all of them, if it runs when the file is imported."""
        if mutant.statement not in self.inside:
            return self._ordered(self.asked)
        return self._ordered([a for a in self.asked if mutant.statement in a.lines])

    def _ordered(self, asked: Sequence[Task] | Sequence[Test]) -> Sequence[Task] | Sequence[Test]:
        """Those with the most kills for their time first. Tests of a file stay together and in order, for their fixtures."""
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
        """The call that a child makes. fresh: import all of llmlab anew; None: only if its parts' declarations change."""

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
