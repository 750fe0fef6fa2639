"""What was found, put together: of each part, each family and each check."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from llmlab.check.covering_array import Item, Pair, as_words, ordered_pair
from llmlab.check.subject import Case, Result

DECIDE = ("built", "trains")  # checks without which there is no such model
MARKS = {"failed": "✗", "passed": "✓", "refused": "–", "skipped": "·", "": ""}  # the first that there is decides


@dataclass
class Report:
    """`checks[name]`: what holds, in words. `refused`: pairs that can't be had, and why."""

    checks: dict[str, str]
    cases: dict[str, Case] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    refused: dict[Pair, str] = field(default_factory=dict)
    seconds: float = 0.0
    checked_part: Item | None = None  # the part that was checked with every other
    requested_checks: Sequence[str] | None = None  # the checks that were typed

    def add(self, case: Case, found: Iterable[Result]) -> None:
        self.cases[case.name] = case
        self.results += found

    @property
    def failed(self) -> list[Result]:
        return [r for r in self.results if r.outcome == "failed"]

    def tally(self, check: str, kind: str) -> Counter[str]:
        """How many cases of a kind came out how."""
        return Counter(r.outcome for r in self.results if r.check == check and self.cases[r.case].kind == kind)

    def outcome(self, cases: Iterable[str], check: str | None = None) -> str:
        """What some cases have in common: failed if one has, passed if one has and none failed, and so on; "" if none."""
        names = set(cases)
        found = {r.outcome for r in self.results if r.case in names and check in (None, r.check)}
        return next((outcome for outcome in MARKS if outcome in found), "")

    def outcome_of_case(self, name: str) -> str:
        """What became of a model: refused too if it can be built but not trained here."""
        found, decided = self.outcome([name]), (r for r in self.results if r.case == name and r.check in DECIDE)
        return "refused" if found != "failed" and any(r.outcome == "refused" for r in decided) else found

    def cases_with(self, item: Item, *kinds: str) -> list[str]:
        """The cases in which a part is."""
        return [c.name for c in self.cases.values() if item in c.parts and (not kinds or c.kind in kinds)]

    def pairs(self) -> set[Pair]:
        """Pairs of parts that have met in a model that was built."""
        built = {r.case for r in self.results if r.outcome == "passed"}
        rows = (c.parts for c in self.cases.values() if c.kind == "pair" and c.name in built)
        return {ordered_pair(a, b) for parts in rows for i, a in enumerate(parts) for b in parts[:i]}

    def reasons(self) -> dict[str, list[str]]:
        """Why combinations are refused, and which are: pairs, and models that turned out to be refused as a whole."""
        found: dict[str, list[str]] = {}
        for pair, why in self.refused.items():
            found.setdefault(why, []).append(as_words(pair))
        for r in self.results:
            if r.outcome == "refused":
                case = self.cases[r.case]
                what = as_words(case.parts) if case.kind == "part" else r.case
                found.setdefault(r.message, []).append(f"{what} ({r.check})")
        return found
