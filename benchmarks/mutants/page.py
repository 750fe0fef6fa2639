"""The table: a row for each file, the survivors line by line, and the equivalents with their arguments."""

from __future__ import annotations

from collections.abc import Sequence

from mutants.mutant import Mutant
from mutants.results import Equivalent, FileResult, share
from mutants.targets import GROUPS, Group, group_of

CHECK, TESTS = "check", "tests"
HEAD = """# Mutation testing

A mutant is the source with one small change: another constant, comparison, sign or operator, a dropped term, swapped
arguments, off by one, a removed statement, `detach` or dropout. `llmlab check SLOT=PART` kills it (`check model=FAMILY`, of
some families, the mutants of src/llmlab/model and decoding) where a check fails, crashes, takes too long, or refuses what
passes without the change. The tests that cover the file, without the slow ones, kill it where one fails. A survivor is a bug
that nobody would notice.
"""


def page(results: Sequence[FileResult], sides: Sequence[str], about: str, equivalents: Sequence[Equivalent]) -> str:
    lines = [HEAD, about, ""]
    groups = [g for g in GROUPS if any(group_of(r.file) is g for r in results)]
    lines += [
        "| group | mutants asked | killed by check | wanted | by check or tests | wanted |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_group_row(g, [r for r in results if group_of(r.file) is g], sides) for g in groups]
    lines += [
        "",
        "In brackets: the 95 % interval (Wilson) where a sample was asked. Equivalents, listed below, are left out.",
        "",
    ]
    for group in groups:
        of_group = [r for r in results if group_of(r.file) is group]
        lines += [f"## {group.name}", "", "| file | asked | killed by check | by the tests, of the rest | survivors |"]
        known = [CHECK] if _waits_for_tests(of_group, sides) else sides
        lines += ["|---|---|---|---|---|", *(_file_row(r, known) for r in of_group), ""]
        for result in of_group:
            if survivors := result.survivors(known):
                lines += [f"{result.file}", "", *(f"- {_described(m, result)}" for m in survivors), ""]
    if equivalents:
        lines += ["## Equivalents", "", "Changes that change nothing which can be seen.", ""]
        lines += [f"- {e.file}, `{e.line}`: `{e.change}`. {e.argument}" for e in equivalents]
    return "\n".join(lines).rstrip() + "\n"


def summary(results: Sequence[FileResult], sides: Sequence[str]) -> list[str]:
    """A line for each group, for a terminal."""
    lines = []
    for group in GROUPS:
        some = [r for r in results if group_of(r.file) is group]
        if not some:
            continue
        waits = _waits_for_tests(some, sides)
        asked, by_check, killed, whole = _counts(some, [CHECK] if waits else sides)
        checked = share(by_check, asked, whole)
        together = "tests have not been asked of all" if waits else f"{share(killed, asked, whole)} in all"
        lines.append(f"{group.name}: {asked} mutants, {checked} killed by check, {together}")
    return lines


def _counts(results: Sequence[FileResult], sides: Sequence[str]) -> tuple[int, int, int, bool]:
    """Mutants asked, killed by check, killed by either; True if there are no others."""
    asked = [(r, m) for r in results for m in r.asked(sides)]
    by_check = sum(r.killed_by(m, CHECK) for r, m in asked)
    return len(asked), by_check, sum(r.killed(m) for r, m in asked), len(asked) == sum(r.total for r in results)


def _group_row(group: Group, results: Sequence[FileResult], sides: Sequence[str]) -> str:
    waits = _waits_for_tests(results, sides)
    asked, by_check, killed, whole = _counts(results, [CHECK] if waits else sides)
    total = sum(r.total for r in results)
    cells = [
        group.name,
        f"{asked:,}" if whole else f"{asked:,} of {total:,}",
        share(by_check, asked, whole) if CHECK in sides and (by_check or group.by_check) else "not asked",
        _wanted(group.by_check),
        share(killed, asked, whole) if TESTS in sides and not waits else "not asked",
        _wanted(group.together),
    ]
    return f"| {' | '.join(cells)} |"


def _waits_for_tests(results: Sequence[FileResult], sides: Sequence[str]) -> bool:
    """True if tests have not been asked of all that the check leaves alive: without those, kills alone would count."""
    if TESTS not in sides or CHECK not in sides:
        return False
    return any((m.id, TESTS) not in r.outcomes for r in results for m in r.survivors([CHECK]))


def _wanted(percent: float | None) -> str:
    return "" if percent is None else f"at least {percent:.0f} %"


def _file_row(result: FileResult, sides: Sequence[str]) -> str:
    asked, by_check, killed, whole = _counts([result], sides)
    rest = [m for m in result.asked(sides) if not result.killed_by(m, CHECK)]
    by_tests = sum(result.killed_by(m, TESTS) for m in rest)
    cells = [
        result.file,
        f"{asked}" if whole else f"{asked} of {result.total}",
        f"{by_check}" if CHECK in sides else "",
        f"{by_tests} of {len(rest)}" if TESTS in sides else "",
        f"{asked - killed}",
    ]
    return f"| {' | '.join(cells)} |"


def _described(mutant: Mutant, result: FileResult) -> str:
    ran = [o for by in (CHECK, TESTS) if (o := result.outcomes.get((mutant.id, by)))]
    unreached = bool(ran) and all(o.how == "not reached" for o in ran)
    return f"line {mutant.line}: `{mutant.change}`{' (nothing runs it)' if unreached else ''}"
