"""The scores that Reasoning Gym's tasks give answers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from llmlab.errors import UserError
from llmlab.reasoning_tasks import FIELD, package
from llmlab.registry import register
from llmlab.slots import Scored

from ._limited import KINDS, Limits, run


@register("reward", "reasoning_gym")
class ReasoningGym:
    """The score that a task of data=reasoning_gym gives, 0 to 1 (Stojanovski et al. 2025, arXiv:2505.24760).

    The package's scorers run in a process of their own, as reward=code, since some evaluate an answer as Python. One that
    raises is worth 0 and counted as invalid.

    tag: the answer is what stands in the last <TAG>...</TAG>, and nothing where there is none; null: all of it
    timeout: seconds that a score may take
    memory: megabytes that it may allocate
    workers: scores that are made at once; null: as many as there are cores
    """

    shows: ClassVar[tuple[str, ...]] = tuple(f"reasoning_{kind}" for kind in KINDS)
    needs = ("reasoning_gym",)

    def __init__(
        self, *, tag: str | None = None, timeout: float = 10.0, memory: int = 2048, workers: int | None = None
    ):
        if tag is not None and not re.fullmatch(r"\w+", tag):
            raise ValueError(f"reward.tag must be the name of a tag, as answer, but is {tag!r}")
        self.tag, self.limits = tag, Limits(timeout, memory, 0, workers)
        package()  # before a run begins, if it is not there

    def score(self, records: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> Scored:
        jobs = [(self._said(answer), tuple(record[FIELD])) for record, answer in zip(records, answers, strict=True)]
        once = [job for job in dict.fromkeys(jobs) if job[0]]
        found = dict(zip(once, run(once, self.limits, "reasoning_gym"), strict=True))
        for (_, by), (verdict, _) in found.items():
            if verdict == "differs":
                raise UserError(
                    f"reward=reasoning_gym: question {by[3]} of {by[0]} was made by another version of the package"
                )
        verdicts = [found.get(job, ("invalid", 0.0)) for job in jobs]
        return Scored(
            [score if math.isfinite(score) else 0.0 for _, score in verdicts],
            {f"reasoning_{kind}": [float(was == kind) for was, _ in verdicts] for kind in KINDS},
        )

    def _said(self, answer: str) -> str:
        if self.tag is None:
            return answer.strip()
        found = re.findall(rf"<{self.tag}>(.*?)</{self.tag}>", answer, re.DOTALL)
        return found[-1].strip() if found else ""
