"""The smallest command that shows a failure again."""

from __future__ import annotations

from collections.abc import Sequence

from llmlab.check import cases, run
from llmlab.check.cover import Item, smallest
from llmlab.check.report import Report, spelled
from llmlab.check.subject import Case

MOST = 8  # failures that are traced; of a bug that breaks everything the first few tell enough


def blame(report: Report, words: Sequence[str] = ()) -> None:
    """Give every failure its command. words: options that were typed, which stay."""
    traced: list[tuple[str, list[Item]]] = []  # a check, and the parts that together make it fail
    for n, result in enumerate(report.results):
        if result.outcome != "failed":
            continue
        case = report.cases[result.case]
        known = next(
            (parts for check, parts in traced if check == result.check and set(parts) <= set(case.parts)), None
        )
        if case.kind == "pair" and known is None and len(traced) < MOST:
            known = _fewest(case, result.check, words)
            traced.append((result.check, known))
        report.results[n] = result._replace(command=command(case, result.check, known, words))


def _fewest(case: Case, check: str, words: Sequence[str]) -> list[Item]:
    def fails(parts: Sequence[Item]) -> bool:
        try:
            found = run.check(cases.together(parts, words), [check])
        except ValueError:
            return False
        return any(r.check == check and r.outcome == "failed" for r in found)

    return smallest(case.parts, fails) if fails(case.parts) else list(case.parts)


def command(case: Case, check: str, parts: Sequence[Item] | None, words: Sequence[str]) -> str:
    typed = [spelled(parts or case.parts)] if case.kind in ("pair", "part") else [f"model={case.name}"]
    return " ".join(["llmlab check", *typed, *words, f"checks={check}"])
