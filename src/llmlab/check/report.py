"""The results of all cases, summed up by part, family and check."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from llmlab.check.covering_array import Item, Pair, as_words, ordered_pair
from llmlab.check.subject import Case, Result
from llmlab.check.twins import NO_TWIN

DECIDE = ("built", "trains")  # a refusal by one of these is a refusal of the whole model
MARKS = {"failed": "✗", "passed": "✓", "refused": "–", "skipped": "·", "": ""}  # in order of precedence


@dataclass
class Report:
    """`checks`: {name: the promise, in words}. `refused`: {pair of parts that can't be combined: the reason}."""

    checks: dict[str, str]
    cases: dict[str, Case] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    refused: dict[Pair, str] = field(default_factory=dict)
    seconds: float = 0.0
    checked_part: Item | None = None  # the one part that was checked with every other
    requested_checks: Sequence[str] | None = None  # the checks that were typed

    def add(self, case: Case, results: Iterable[Result]) -> None:
        self.cases[case.name] = case
        self.results += results

    @property
    def failed(self) -> list[Result]:
        return [r for r in self.results if r.outcome == "failed"]

    def tally(self, check: str, kind: str) -> Counter[str]:
        """{outcome: number of cases of a kind} of one check."""
        return Counter(r.outcome for r in self.results if r.check == check and self.cases[r.case].kind == kind)

    def outcome(self, cases: Iterable[str], check: str | None = None) -> str:
        """One outcome for several cases: "failed" if any failed, else "passed" if any passed, and so on; "" without results."""
        names = set(cases)
        outcomes = {r.outcome for r in self.results if r.case in names and check in (None, r.check)}
        return next((outcome for outcome in MARKS if outcome in outcomes), "")

    def outcome_of_case(self, name: str) -> str:
        """The outcome of one model: "refused" also where it can be built but not trained here."""
        outcome, decisive = self.outcome([name]), (r for r in self.results if r.case == name and r.check in DECIDE)
        return "refused" if outcome != "failed" and any(r.outcome == "refused" for r in decisive) else outcome

    def cases_with(self, item: Item, *kinds: str) -> list[str]:
        """Names of the cases with a part."""
        return [c.name for c in self.cases.values() if item in c.parts and (not kinds or c.kind in kinds)]

    @property
    def without_twin(self) -> list[Item]:
        """Parts whose numbers were compared with nothing."""
        return list(dict.fromkeys(self.cases[r.case].parts[0] for r in self.results if r.message == NO_TWIN))

    def pairs(self) -> set[Pair]:
        """Pairs of parts that were combined in a model that could be built."""
        built = {r.case for r in self.results if r.outcome == "passed"}
        rows = (c.parts for c in self.cases.values() if c.kind == "pair" and c.name in built)
        return {ordered_pair(a, b) for parts in rows for i, a in enumerate(parts) for b in parts[:i]}

    def reasons(self) -> dict[str, list[str]]:
        """{reason: the combinations refused for it}: pairs, and models that were refused as a whole."""
        refused: dict[str, list[str]] = {}
        for pair, why in self.refused.items():
            refused.setdefault(why, []).append(as_words(pair))
        for r in self.results:
            if r.outcome == "refused":
                case = self.cases[r.case]
                what = as_words(case.parts) if case.kind == "part" else r.case
                refused.setdefault(r.message, []).append(f"{what} ({r.check})")
        return refused
