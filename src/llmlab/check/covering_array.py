"""A covering array of strength 2: few rows of choices in which every two items of two factors occur together, if they can.

A factor is a list of levels, of which a row has one; a level is one item, or several that go together. A refused row is
reduced to the fewest levels that conflict, which no later row combines again. Rows are built greedily, after AETG (Cohen et
al. 1997, "The AETG System"); conflicts are found by QuickXplain (Junker 2004).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import TypeVar

T = TypeVar("T")
Item = tuple[str, str]  # a slot, and the name of a part
Level = tuple[Item, ...]
Row = tuple[int, ...]  # of each factor, which level
Choice = tuple[int, int]  # a factor and one of its levels
Pair = tuple[Item, Item]  # in alphabetical order
TRIES = 6  # candidates for a row; AETG takes the one with the most new pairs, of 50 candidates


def ordered_pair(a: Item, b: Item) -> Pair:
    """Two items as the one key that stands for them in either order."""
    return (a, b) if a < b else (b, a)


def as_words(items: Iterable[Item]) -> str:
    """Items as overrides: "norm=rmsnorm ffn=swiglu"."""
    return " ".join(f"{slot}={name}" for slot, name in items)


def minimal_subset(every: Sequence[T], bad: Callable[[Sequence[T]], bool]) -> list[T]:
    """A subset of `every` that is bad, and not bad without any one of its items (QuickXplain).

    Monotone: every superset of a bad set must be bad. Needs O(k log(n / k)) tests for a subset of k items.
    """

    def search(background: list[T], added: bool, rest: list[T]) -> list[T]:
        if added and bad(background):
            return []
        # The background alone is not bad, but with the rest it is: so the last one left must belong to the subset.
        if len(rest) == 1:
            return rest
        first, second = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        in_second = search(background + first, True, second)
        in_first = search(background + in_second, bool(in_second), first)
        return in_first + in_second

    return search([], False, list(every)) if every else []


class CoveringArray:
    """Rows over some factors. `refuse(items)` gives the reason why a whole row is impossible, or None.

    `refused[pair]`: why two items never occur together. The first level of each factor is the usual one, and the row of
    these must be possible. No row is tried twice, nor one that contains a known conflict. Where nearly everything
    conflicts, more levels than necessary may be blamed.
    """

    def __init__(self, factors: Sequence[Sequence[Level]], refuse: Callable[[Sequence[Item]], str | None]):
        self.factors, self.refuse = factors, refuse
        self.rows: list[Row] = []
        self.refused: dict[Pair, str] = {}
        self.conflicts: dict[frozenset[Choice], str] = {}
        self._known: dict[Row, str | None] = {}
        self._at: dict[Item, list[Choice]] = {}
        for f, levels in enumerate(factors):
            for n, level in enumerate(levels):
                for item in level:
                    self._at.setdefault(item, []).append((f, n))
        usual = (0,) * len(factors)
        self._contexts = [usual, *((n, *usual[1:]) for n in range(1, len(factors[0])))] if factors else []

    def pairs(self) -> list[Pair]:
        """Every two items of two different factors."""
        return [ordered_pair(a, b) for a, b in combinations(self._at, 2) if self._factors(a) != self._factors(b)]

    def known_items(self) -> list[Item]:
        """Every item of every level."""
        return list(self._at)

    def _factors(self, item: Item) -> set[int]:
        return {f for f, _ in self._at[item]}

    def items(self, row: Row) -> list[Item]:
        return [item for levels, n in zip(self.factors, row, strict=True) for item in levels[n]]

    def cover(self, wanted: Iterable[Pair]) -> Iterator[Row]:
        """Rows in which all wanted pairs occur that are possible, earlier rows first; the others are in `refused` then."""
        # A generator of its own, so that every run has the same rows and two pages of results can be compared.
        chance = random.Random(0)
        # A dict for its order: a set of strings has another in each process, and the greedy search would make other rows.
        left = dict.fromkeys(p for p in wanted if p not in self.refused)
        for had in list(self.rows):
            before = len(left)
            self._mark_covered(had, left)
            if len(left) < before:
                yield had
        while left:
            pair = self._next_pair(left)
            row = self._best_row(pair, left, chance)
            if row is None:
                self.refused[pair] = self._pair_reason(pair)
                del left[pair]
            elif (reason := self._refusal(row)) is not None:
                self._add_conflict(row, reason)
            else:
                self.rows.append(row)
                self._mark_covered(row, left)
                yield row

    def add_conflicts(self, conflicts: Mapping[frozenset[Choice], str]) -> None:
        """Take over conflicts found elsewhere; rows that contain one are given up."""
        self.conflicts |= conflicts
        self.rows = [row for row in self.rows if self._possible(list(enumerate(row)))]

    def usual(self, items: Sequence[Item]) -> tuple[Row, str | None]:
        """The row with these items and usual levels otherwise, or those that the items need; and why it is impossible."""
        chosen: list[Choice] = []
        for (
            item
        ) in items:  # an item may be in several levels (an objective with each mask): the level with the other items
            fits = [c for c in self._at[item] if all(f != c[0] or n == c[1] for f, n in chosen)]
            also = {other for other in items if other != item}
            chosen += [max(fits or self._at[item], key=lambda c: len(also & set(self.factors[c[0]][c[1]])))]
        feasible = self._feasible_row(chosen)
        if feasible is None and self._add_context(chosen):
            feasible = self._feasible_row(chosen)
        row = feasible or self._overlay(self._contexts[0], chosen)
        return row, None if feasible else self._refusal(row)

    # ---------------------------------------------------------------- rows

    def _mark_covered(self, row: Row, left: dict[Pair, None]) -> None:
        for a, b in combinations(self.items(row), 2):
            left.pop(ordered_pair(a, b), None)

    def _next_pair(self, left: dict[Pair, None]) -> Pair:
        """A pair of the two factors with the most pairs left: these two decide how many rows are needed."""
        groups: dict[tuple[int, ...], list[Pair]] = {}
        for pair in left:
            groups.setdefault(tuple(sorted(f for item in pair for f in self._factors(item))), []).append(pair)
        # Only factors decide here, not levels: n x m pairs of two factors need n x m rows whatever stands in the others.
        return max(groups.values(), key=len)[0]

    def _best_row(self, pair: Pair, left: dict[Pair, None], chance: random.Random) -> Row | None:
        starts = [c for c in _choice_pairs(*(self._at[item] for item in pair)) if self._possible(c)]
        best: tuple[int, Row] | None = None
        for n in range(TRIES if starts else 0):
            row, gain = self._fill_greedily(starts[n % len(starts)], left, chance)
            if row is not None and (best is None or gain > best[0]):
                best = gain, row
        if best is not None:
            return best[1]
        return next((row for start in starts if (row := self._search_row(start)) is not None), None)

    def _fill_greedily(
        self, start: Sequence[Choice], left: dict[Pair, None], chance: random.Random
    ) -> tuple[Row | None, int]:
        chosen, total = list(start), 0
        rest = [f for f in range(len(self.factors)) if f not in {g for g, _ in start}]
        # AETG fills factors in random order: in a fixed one the last would always have the least choice.
        chance.shuffle(rest)
        for factor in rest:
            have = [item for f, n in chosen for item in self.factors[f][n]]
            fits = [(factor, n) for n in range(len(self.factors[factor])) if self._possible([*chosen, (factor, n)])]
            if not fits:
                return None, 0
            gains = [sum(ordered_pair(a, b) in left for a in self.factors[factor][n] for b in have) for _, n in fits]
            most = max(gains)
            chosen.append(chance.choice([c for c, gain in zip(fits, gains, strict=True) if gain == most]))
            total += most
        return self._overlay((0,) * len(self.factors), chosen), total

    def _search_row(self, chosen: Sequence[Choice]) -> Row | None:
        """Any row with these choices and no known conflict, by backtracking over the most constrained factor first."""
        have = {f for f, _ in chosen}
        rest = [f for f in range(len(self.factors)) if f not in have]
        if not rest:
            return self._overlay((0,) * len(self.factors), chosen)
        fits = {f: [(f, n) for n in range(len(self.factors[f])) if self._possible([*chosen, (f, n)])] for f in rest}
        factor = min(rest, key=lambda f: len(fits[f]))
        return next((row for c in fits[factor] if (row := self._search_row([*chosen, c])) is not None), None)

    def _possible(self, chosen: Sequence[Choice]) -> bool:
        """True if no known conflict is among these choices."""
        have = set(chosen)
        return not any(conflict <= have for conflict in self.conflicts)

    @staticmethod
    def _overlay(row: Row, chosen: Iterable[Choice]) -> Row:
        over = dict(chosen)
        return tuple(over.get(f, n) for f, n in enumerate(row))

    # ---------------------------------------------------------------- conflicts

    def _refusal(self, row: Row) -> str | None:
        have = set(enumerate(row))
        for conflict, reason in self.conflicts.items():
            if conflict <= have:
                return reason
        if row not in self._known:
            self._known[row] = self.refuse(self.items(row))
        return self._known[row]

    def _feasible_row(self, chosen: Sequence[Choice]) -> Row | None:
        """A possible row with these choices on one of the known contexts."""
        rows = dict.fromkeys(self._overlay(context, chosen) for context in self._contexts)
        return next((row for row in rows if self._refusal(row) is None), None)

    def _add_conflict(self, row: Row, reason: str) -> None:
        while True:
            choices = list(enumerate(row))
            conflict = minimal_subset(choices, lambda some: self._feasible_row(some) is None)
            if not self._add_context(conflict):
                break
        self.conflicts[frozenset(conflict)] = self._conflict_reason(conflict) or reason

    def _conflict_reason(self, conflict: Sequence[Choice]) -> str | None:
        """The reason of a conflict: of rows without another known conflict, the reason that names most of its slots."""
        reasons = []
        for context in self._contexts:
            row = self._overlay(context, conflict)
            if not any(known <= set(enumerate(row)) for known in self.conflicts):
                reasons.append(self._refusal(row) or "")
        slots = {slot for f, n in conflict for slot, _ in self.factors[f][n]}
        return max(reasons, key=lambda why: len(slots & set(re.findall(r"\w+", why))), default=None)

    def _add_context(self, conflict: Sequence[Choice]) -> bool:
        """True if these choices are possible in some other row, which becomes a context in which later ones are tried."""
        row = next((row for row in self._alternative_rows(conflict) if self._refusal(row) is None), None)
        if row is not None:
            self._contexts.append(row)
        return row is not None

    def _alternative_rows(self, conflict: Sequence[Choice]) -> Iterator[Row]:
        """Rows with these choices that differ from the usual one in a further factor, first as the refusal advises
        ("choose kernel=eager"). All levels are tried for a single choice, else the last of each factor and random rows."""
        have = {f for f, _ in conflict}
        reason = self._refusal(self._overlay(self._contexts[0], conflict)) or ""
        hints = [c for item in re.findall(r"(\w+)=(\w+)", reason) for c in self._at.get(item, ())]
        every = [(f, n) for f, levels in enumerate(self.factors) for n in range(1, len(levels))]
        last = [(f, len(levels) - 1) for f, levels in enumerate(self.factors)]
        for choice in [*hints, *(every if len(conflict) == 1 else last)]:
            if choice[0] not in have:
                yield self._overlay(self._contexts[0], [*conflict, choice])
        # Another seed for each conflict: with the same one every conflict would be tried in the same random rows.
        chance = random.Random(len(self.conflicts))
        for _ in range(2 * TRIES):
            row, _ = self._fill_greedily(conflict, {}, chance)
            if row is not None:
                yield row

    def _pair_reason(self, pair: Pair) -> str:
        """The reason why no row has a pair: a conflict with both of it, or one with every level of some factor."""
        for start in _choice_pairs(*(self._at[item] for item in pair)):
            if reasons := self._conflict_reasons(set(start)):
                return reasons[0]
            for f, levels in enumerate(self.factors):
                each = [self._conflict_reasons({*start, (f, n)}) for n in range(len(levels))]
                if f not in {g for g, _ in start} and all(each):
                    return "; ".join(dict.fromkeys(reasons[0] for reasons in each))
        return "; ".join(dict.fromkeys(self.conflicts.values()))

    def _conflict_reasons(self, chosen: set[Choice]) -> list[str]:
        return [why for conflict, why in self.conflicts.items() if conflict <= chosen]


def _choice_pairs(first: Sequence[Choice], second: Sequence[Choice]) -> list[list[Choice]]:
    return [[a, b] for a in first for b in second]
