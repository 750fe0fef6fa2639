"""`llmlab check` on a file: recorded once with the file unchanged, then run on each mutant until a check fails."""

from __future__ import annotations

import ast
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING
from unittest import mock

from mutants.forks import Write

if TYPE_CHECKING:
    from llmlab.check.subject import Case, Result, Subject

    Check = Callable[[Subject], None]
    Tell = Callable[[Case, list[Result]], None]

FAILED, REFUSED, PASSED = "failed", "refused", "passed"
FIELDS = ("case", "name", "check", "outcome", "seconds", "lines")  # of a recorded task; lines: {file: its lines}
replaced = mock.patch.multiple


@dataclass
class Task:
    """One check of one case. `lines`: the statements in functions of the file that it runs."""

    case: str  # its fields, as Python writes them
    name: str  # of the case
    check: str
    outcome: str
    seconds: float
    lines: set[int]
    kills: int = field(default=0, compare=False)

    @property
    def worth(self) -> float:
        """Kills for each second so far, with a guess of 0.1 kills before there is any."""
        return (self.kills + 0.1) / (self.seconds + 0.05)


def words_of(parts: Iterable[tuple[str, str]]) -> list[str]:
    """Arguments of `llmlab check`, one for each of these parts, if it checks parts of that slot."""
    from llmlab.check.request import SLOTS

    return [f"{slot}={name}" for slot, name in parts if slot in SLOTS]


def record(words: Sequence[str], names: str | None, reached: dict[str, set[int]], write: Write) -> None:
    """Run `llmlab check WORD checks=NAMES` for each word here and write each check, with FIELDS. reached: filled by the
    instrumented files."""
    from llmlab.check import case_checks, runner
    from llmlab.check.request import parse_request

    run, tasks = case_checks._run_check, dict[tuple[str, str], dict]()

    def timed(subject: Subject, name: str, check: Check) -> Result:
        for lines in reached.values():
            lines.clear()
        began = time.perf_counter()
        result = run(subject, name, check)
        seconds = time.perf_counter() - began
        case = repr(asdict(subject.case))
        some = {file: sorted(lines) for file, lines in reached.items() if lines}
        values = (case, subject.case.name, name, result.outcome, seconds, some)
        tasks[case, name] = dict(zip(FIELDS, values, strict=True))
        return result

    def here(cases: Iterable[Case], names: Sequence[str] | None, processes: int, tell: Tell) -> None:
        for case in cases:
            tell(case, case_checks.check_case(case, names))

    with replaced(case_checks, _run_check=timed, check_cases=here):
        for word in words:
            runner.run_request(parse_request([word]), names, 1)
    for task in tasks.values():
        write(task)


def ask(tasks: Sequence[Task], write: Write) -> None:
    """Run the tasks until one finds a fault; write that one."""
    from llmlab.check import case_checks, processes
    from llmlab.check.subject import Case

    processes.configure_process()
    run = case_checks._run_check
    before = {(t.name, t.check): t.outcome for t in tasks}

    def until_killed(subject: Subject, name: str, check: Check) -> Result:
        result = run(subject, name, check)
        was = before.get((subject.case.name, name), PASSED)
        if result.outcome == FAILED or (result.outcome == REFUSED and was == PASSED):
            write({"killer": [subject.case.name, name], "message": result.message[:200]})
            raise Killed
        return result

    with replaced(case_checks, _run_check=until_killed), suppress(Killed):
        for case, names in _by_case(tasks):
            case_checks.check_case(Case(**ast.literal_eval(case)), names)


class Killed(BaseException):
    """Ends the checks of a mutant."""


def _by_case(tasks: Sequence[Task]) -> Iterable[tuple[str, list[str]]]:
    """Tasks in their order, neighbours of one case together, since they share a model."""
    groups: list[tuple[str, list[str]]] = []
    for task in tasks:
        if groups and groups[-1][0] == task.case:
            groups[-1][1].append(task.check)
        else:
            groups.append((task.case, [task.check]))
    return groups
