"""Each bug, put into the real code, makes a check of the matrix fail that holds without it."""

from functools import cache
from pathlib import Path

import pytest
from bugs import every, page

from llmlab.check import case_checks, cases
from llmlab.check.subject import Case, Result

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"
QUICK = ("documents_seen",)  # of a family, which needs no array of all parts


@cache
def case_of(check: str, where: str) -> Case:
    """A case of the matrix: a family, with other parts perhaps, a part by itself, or a model that has some parts."""
    items = [(slot, name) for slot, _, name in (word.partition("=") for word in where.split())]
    if items[0][0] == "model":
        return cases.family_case(items[0][1], where.split()[1:])
    return cases.part_case(items[0]) if check in case_checks.checks_of("part") else cases.combined(items)


@cache
def sound(check: str, where: str) -> Result:
    return case_checks.check_case(case_of(check, where), [check])[-1]


@pytest.mark.parametrize(
    "bug", [b if b.name in QUICK else pytest.param(b, marks=pytest.mark.slow) for b in every()], ids=str
)
def test_a_bug_is_caught(bug):
    for check, where in bug.caught.items():
        assert sound(check, where).outcome == ("refused" if bug.refused else "passed"), sound(check, where)
        with bug.injected():
            found = case_checks.check_case(case_of(check, where), [check])[-1]
        assert (found.check, found.outcome) == (check, "failed"), found
        assert not found.message.startswith("crashed"), found.message
    assert (
        case_checks.check_case(case_of(check, where), [check])[-1].outcome == sound(check, where).outcome
    )  # the bug is gone


def test_the_page_lists_them():
    assert len(every()) >= 25
    assert len({b.problem for b in every()}) == len(every())
    assert page.section() in PAGE.read_text(encoding="utf-8"), "make conformance"
