"""A reward that runs an answer's code with tests, in a process of its own."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from llmlab.errors import UserError
from llmlab.registry import register
from llmlab.slots import Scored

from ._limited import KINDS, Limits, run

FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
PYTHON = ("python", "py", "python3")


@register("reward", "code")
class Code:
    """The share of a record's tests that an answer's Python code passes (APPS: Hendrycks et al. 2021, arXiv:2105.09938).

    The code is the answer's last block between ``` marks, of those for Python where there are any, or else all of it. A test
    is Python that raises nothing, as `assert f(2) == 4`; it knows the code's names. An answer is run in a process of its own,
    in an empty folder that goes away, without the environment. One that passes a limit is worth 0 and counted: timed_out,
    crashed (memory, or an end without a verdict) and invalid (no code, or code that raises). These are limits and no sandbox:
    hostile code reads and writes what the user may.

    field: of the record, which has the tests: a text or a list of texts
    credit: "share" of the tests passed, or "all": 1 if all are passed, else 0
    timeout: seconds that an answer may take, with all its tests
    memory: megabytes that it may allocate
    file_size: megabytes of the largest file that it may write
    workers: answers that are run at once; null: as many as there are cores
    """

    shows: ClassVar[tuple[str, ...]] = tuple(f"code_{kind}" for kind in KINDS)
    telling: ClassVar[tuple[dict[str, Any], ...]] = ({"field": "other"},)

    def __init__(
        self,
        *,
        field: str = "tests",
        credit: Literal["share", "all"] = "share",
        timeout: float = 5.0,
        memory: int = 512,
        file_size: int = 1,
        workers: int | None = None,
    ):
        self.limits = Limits(timeout, memory, file_size, workers)
        self.field, self.needs, self.all = field, (field,), credit == "all"

    def score(self, records: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> Scored:
        jobs = [(code_of(answer), self._tests(record)) for record, answer in zip(records, answers, strict=True)]
        # Greedy and well-trained models give the same code often.
        once = list(dict.fromkeys((code, tests) for code, tests in jobs if code))
        found: dict[tuple[str, tuple[str, ...]], tuple[str, float]] = dict(
            zip(once, run(once, self.limits), strict=True)
        )
        verdicts = [found.get(job, ("invalid", 0)) for job in jobs]
        shares = [passed / len(tests) for (_, passed), (_, tests) in zip(verdicts, jobs, strict=True)]
        return Scored(
            [float(share == 1) if self.all else share for share in shares],
            {f"code_{kind}": [float(was == kind) for was, _ in verdicts] for kind in KINDS},
        )

    def _tests(self, record: Mapping[str, Any]) -> tuple[str, ...]:
        given = record[self.field]
        # JSON may have a text as a number.
        tests = tuple(map(str, given)) if isinstance(given, list | tuple) else (str(given),)
        if not any(test.strip() for test in tests):
            raise UserError(f"reward=code: a record's {self.field} has no test: {given!r}")
        return tests


def code_of(answer: str) -> str:
    """The code of an answer; "" where there is none. A block that has no end reaches to the answer's."""
    blocks = [(language.lower(), text) for language, text in FENCE.findall(answer)]
    marked = [text for language, text in blocks if language in PYTHON]
    plain = [text for language, text in blocks if not language]
    code = (marked or plain or [""])[-1] if blocks else answer
    return textwrap.dedent(code).strip()
