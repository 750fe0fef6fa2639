"""The smallest command that shows a failure again."""

from __future__ import annotations

from collections.abc import Sequence

from llmlab.check import TRACED, cases, run
from llmlab.check.cover import Item, smallest, spelled
from llmlab.check.parts.computed import backend
from llmlab.check.processes import Alone
from llmlab.check.report import Report
from llmlab.check.subject import Case

MOST = 8  # failures that are traced; of a bug that breaks everything the first few tell enough


def blame(report: Report, words: Sequence[str] = ()) -> None:
    """Give every failure its command. words: options that were typed, which stay with what they are for."""
    traced: list[tuple[str, str, list[Item]]] = []  # a family, a check, and the parts that together make it fail
    with Alone() as alone:
        for n, result in enumerate(report.results):
            if result.outcome != "failed":
                continue
            case = report.cases[result.case]
            family, parts = _family(case), list(case.parts)
            known = next((p for f, c, p in traced if (f, c) == (family, result.check) and set(p) <= set(parts)), None)
            if known is None and case.kind in ("pair", "swap") and len(parts) > 1 and len(traced) < MOST:
                known = _fewest(alone, case, result.check, words)
                traced.append((family, result.check, known))
            report.results[n] = result._replace(
                command=command(case, result.check, parts if known is None else known, words)
            )


def _family(case: Case) -> str:
    """The one that was typed, "" if only parts were."""
    return case.name.split()[0] if case.kind in ("swap", "family") else ""


def _fewest(alone: Alone, case: Case, check: str, words: Sequence[str]) -> list[Item]:
    def fails(parts: Sequence[Item]) -> bool:
        try:
            smaller = _with(case, parts, words)
        except ValueError:
            return False
        found = run.check_alone(alone, smaller, [check])
        return any(r.check == check and r.outcome == "failed" for r in found)

    if not fails(case.parts):
        return list(case.parts)
    return [] if _family(case) and fails([]) else smallest(case.parts, fails)


def _with(case: Case, parts: Sequence[Item], words: Sequence[str]) -> Case:
    """The same with fewer parts."""
    words = _theirs(case, parts, words)
    if family := _family(case):
        return cases.family(family, [*spelled(parts).split(), *words])
    return cases.together(parts, words)


def _theirs(case: Case, parts: Sequence[Item], words: Sequence[str]) -> list[str]:
    """Options without those of parts that are left out."""
    gone = {slot for slot, _ in case.parts} - {slot for slot, _ in parts}
    return [w for w in words if w.partition(".")[0] not in gone]


def command(case: Case, check: str, parts: Sequence[Item], words: Sequence[str]) -> str:
    family = _family(case)
    typed = [f"model={family}"] * bool(family) + [spelled(parts)] * bool(parts)
    compiled = [f"compile={backend()}"] * (backend() != TRACED)
    return " ".join(["llmlab check", *typed, *_theirs(case, parts, words), f"checks={check}", *compiled])
