"""The page families.md: every family with one part replaced, and the outcome."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from llmlab.check.report import DECIDE, MARKS, Report
from llmlab.check.request import MODEL_SLOTS
from llmlab.formatting import markdown_table


def page_text(report: Report) -> str:
    by_swap = outcomes(report)
    slots = [s for s in MODEL_SLOTS if any(slot == s for _, slot, _ in by_swap)]
    families = list(dict.fromkeys(family for family, _, _ in by_swap))
    count = Counter(by_swap.values())
    rows = []
    for family in families:
        cells = (Counter(o for (f, s, _), o in by_swap.items() if (f, s) == (family, slot)) for slot in slots)
        rows.append([family, *(", ".join(f"{MARKS[o]} {c[o]}" for o in MARKS if c[o]) for c in cells)])
    lines = [
        "# Families with other parts",
        "",
        "Written by `llmlab check --families`: every family, in a tiny size, with each part that it does not have in that "
        f"part's slot. {len(by_swap):,} models: {count['passed']:,} "
        f"{'train for two steps and ' * ('trains' in report.checks)}keep the promises that are asked of them "
        f"({', '.join(n for n in report.checks if n not in DECIDE)}), {count['refused']:,} are "
        f"refused in a line, {count['failed']:,} fail.",
        "",
        f"{MARKS['passed']} parts with which that holds; {MARKS['refused']} parts that are refused, and why stands below; "
        f"{MARKS['failed']} parts with which a check fails.",
        "",
        *markdown_table(["family", *slots], rows),
        "",
        *failures(report),
        *_refused(report),
    ]
    return "\n".join(lines) + "\n"


def outcomes(report: Report) -> dict[tuple[str, str, str], str]:
    """{(family, slot, part): outcome}."""
    return {(c.name.split()[0], *c.parts[0]): report.outcome_of_case(c.name) for c in report.cases.values()}


def failures(report: Report) -> Iterator[str]:
    """The section on failures, which both pages have."""
    if report.failed:
        rows = [[r.case, r.check, r.message, r.command] for r in report.failed]
        yield from ["## Failures", "", *markdown_table(["model", "check", "what is so", "again with"], rows), ""]


def _refused(report: Report) -> Iterator[str]:
    """The section on refusals, by part and reason; reasons are alike if they differ only in the family's name."""
    families: dict[tuple[str, str], list[str]] = {}
    for r in report.results:
        if r.outcome == "refused" and r.check in DECIDE:
            family, (slot, part) = r.case.split()[0], report.cases[r.case].parts[0]
            why = r.message.replace(f"model={family}", "model=...")
            families.setdefault((f"{slot}={part}", why), []).append(family)
    every = len({c.name.split()[0] for c in report.cases.values()})
    rows = [[part, _family_names(some, every), why] for (part, why), some in sorted(families.items())]
    if rows:
        yield from ["## Refused", "", *markdown_table(["part", "families", "what a user is told"], rows)]


def _family_names(some: list[str], every: int) -> str:
    return f"all {every}" if len(some) == every else ", ".join(some)
