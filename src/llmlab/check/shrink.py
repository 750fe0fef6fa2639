"""Reduces a failing combination to the fewest parts that still fail, and writes the command that reproduces it."""

from __future__ import annotations

from collections.abc import Sequence

from llmlab.check import TRACED, case_checks, cases
from llmlab.check.covering_array import Item, as_words, minimal_subset
from llmlab.check.parts.computed import backend
from llmlab.check.processes import IsolatedProcess
from llmlab.check.report import Report
from llmlab.check.subject import Case

MAX_SHRUNK = 8  # failures reduced: each costs a dozen models, and a bug that breaks everything shows in the first few


def add_commands(report: Report, words: Sequence[str] = ()) -> None:
    """Set the command of every failure. words: options that were typed; each stays while its part does."""
    reduced: list[
        tuple[tuple[str, str, tuple[str, ...]], list[Item]]
    ] = []  # family, check, options; the parts that fail
    with IsolatedProcess() as alone:
        for n, result in enumerate(report.results):
            if result.outcome != "failed":
                continue
            case = report.cases[result.case]
            family, parts = _family_name(case), list(case.parts)
            typed = (*words, *case.options)
            about = (family, result.check, case.options)
            known = next((p for a, p in reduced if a == about and set(p) <= set(parts)), None)
            if (
                known is None
                and case.kind in ("pair", "swap", "setting")
                and len(parts) > 1
                and len(reduced) < MAX_SHRUNK
            ):
                known = _minimal_parts(alone, case, result.check, typed)
                reduced.append((about, known))
            report.results[n] = result._replace(
                command=command(case, result.check, parts if known is None else known, typed)
            )


def _family_name(case: Case) -> str:
    """The family of a case, "" where only parts were named."""
    return case.name.split()[0] if case.kind in ("swap", "family") else ""


def _minimal_parts(alone: IsolatedProcess, case: Case, check: str, words: Sequence[str]) -> list[Item]:
    def fails(parts: Sequence[Item]) -> bool:
        try:
            smaller = _smaller_case(case, parts, words)
        except ValueError:
            return False
        results = case_checks.check_isolated(alone, smaller, [check])
        return any(r.check == check and r.outcome == "failed" for r in results)

    if not fails(case.parts):
        return list(case.parts)
    return [] if _family_name(case) and fails([]) else minimal_subset(case.parts, fails)


def _smaller_case(case: Case, parts: Sequence[Item], words: Sequence[str]) -> Case:
    """The case with fewer parts."""
    words = _options_for(case, parts, words)
    if family := _family_name(case):
        return cases.family_case(family, [*as_words(parts).split(), *words])
    return cases.combined(parts, words)


def _options_for(case: Case, parts: Sequence[Item], words: Sequence[str]) -> list[str]:
    """Options without those of parts that were left out."""
    gone = {slot for slot, _ in case.parts} - {slot for slot, _ in parts}
    return [w for w in words if w.partition(".")[0] not in gone]


def command(case: Case, check: str, parts: Sequence[Item], words: Sequence[str]) -> str:
    family = _family_name(case)
    typed = [f"model={family}"] * bool(family) + [as_words(parts)] * bool(parts)
    compiled = [f"compile={backend()}"] * (backend() != TRACED)
    return " ".join(["llmlab check", *typed, *_options_for(case, parts, words), f"checks={check}", *compiled])
