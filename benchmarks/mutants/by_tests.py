"""The tests on a file: recorded once with the file unchanged, then run on each mutant until one fails."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mutants.forks import Write
from mutants.targets import ROOT

QUIET = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:warnings"]


@dataclass
class Test:
    __test__ = False  # pytest would collect it

    name: str
    outcome: str
    seconds: float
    lines: set[int]  # the statements in functions of the file that it runs
    kills: int = field(default=0, compare=False)


class _Recorder:
    """A pytest plugin that writes each test with its outcome, its time and the lines it reaches, its fixtures' included."""

    def __init__(self, reached: dict[str, set[int]], write: Write):
        self.reached, self.write = reached, write
        self.seconds, self.outcome = 0.0, "passed"
        self.module = ""
        self.shared: dict[str, set[int]] = {}  # by fixtures, which the later tests of a module may share

    def pytest_runtest_logreport(self, report) -> None:
        self.seconds += report.duration
        if (module := report.nodeid.partition("::")[0]) != self.module:
            self.module, self.shared = module, {file: set() for file in self.reached}
        if report.when == "setup":
            for file, lines in self.reached.items():
                self.shared[file] |= lines
        if report.outcome != "passed":
            self.outcome = report.outcome
        if report.when == "teardown":
            every = {file: sorted(lines | self.shared[file]) for file, lines in self.reached.items()}
            lines = {file: some for file, some in every.items() if some}
            self.write(dict(name=report.nodeid, outcome=self.outcome, seconds=self.seconds, lines=lines))
            self.seconds, self.outcome = 0.0, "passed"
            for some in self.reached.values():
                some.clear()


class _Only:
    """A pytest plugin that keeps some of the tests, and writes the first that fails."""

    def __init__(self, names: Collection[str], write: Write):
        self.names, self.write, self.failed = set(names), write, False

    def pytest_collection_modifyitems(self, config, items: list) -> None:
        items[:] = [item for item in items if item.nodeid in self.names]

    def pytest_collectreport(self, report) -> None:
        self._tell(report)

    def pytest_runtest_logreport(self, report) -> None:
        self._tell(report)

    def _tell(self, report) -> None:
        if report.outcome == "failed" and not self.failed:
            self.failed = True
            self.write({"killer": [report.nodeid], "message": str(report.longrepr).strip().rpartition("\n")[2]})


def record(files: Sequence[str], slow: bool, reached: dict[str, set[int]], write: Write) -> None:
    """Run the tests of these files and write a Test for each."""
    import pytest

    os.chdir(ROOT)
    marks = [] if slow else ["-m", "not slow"]
    code = pytest.main([*QUIET, *marks, *files], plugins=[_Recorder(reached, write)])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise RuntimeError(f"pytest ended with {code!r}: {' '.join(files)}")


def ask(tests: Sequence[Test], folder: Path, write: Write) -> None:
    """Run the tests until one fails; write that one. folder: for their temporary files."""
    import pytest

    os.chdir(ROOT)
    files = list(dict.fromkeys(t.name.partition("::")[0] for t in tests))
    only = _Only([t.name for t in tests], write)
    code = pytest.main([*QUIET, "-x", f"--basetemp={folder / 'pytest'}", *files], plugins=[only])
    if code != pytest.ExitCode.OK and not only.failed:
        write({"killer": ["pytest"], "message": repr(code)})
