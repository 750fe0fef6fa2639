"""Rewards that read an answer's text: a pattern, its last number, its length."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal, DecimalException
from typing import Any, ClassVar, Literal

from llmlab.errors import UserError
from llmlab.registry import register

# A sign only where it is no dash behind a word; commas only before three digits, so that "1,2" are two numbers.
NUMBER = re.compile(
    r"(?:(?<![\w.])[-+])?(?<![\d.])(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|(?<!\d)\.\d+"
)


@register("reward", "regex")
class Regex:
    r"""A verifiable reward (Tülu 3: Lambert et al. 2024, arXiv:2411.15124): 1 for an answer in which a pattern is found.

    With a field the pattern has a group, which must be the record's own answer: 'answer is (\d+)'.

    pattern: regular expression of Python's `re`
    field: of the record, which the pattern's first group must be equal to; null: the pattern is enough
    whole: all of the answer must match, but for white space around
    """

    small: ClassVar[dict[str, str]] = {"pattern": "(seven|[0-9])"}
    telling = ({"field": "answer"}, {"pattern": "([a-z]+)", "field": "other"})

    def __init__(self, *, pattern: str = "", field: str | None = None, whole: bool = False):
        if not pattern:
            raise ValueError(r"reward.pattern must be a regular expression, as reward.pattern='answer is (\d+)'")
        try:
            self.pattern = re.compile(pattern)
        except re.error as e:
            raise ValueError(f"reward.pattern={pattern} is no regular expression: {e}") from None
        if field is not None and not self.pattern.groups:
            raise ValueError(
                f"reward.pattern={pattern} has no group in parentheses, which reward.field={field} is compared with"
            )
        self.field, self.whole, self.needs = field, whole, () if field is None else (field,)

    def score(self, records: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> list[float]:
        return [float(self._fits(record, answer)) for record, answer in zip(records, answers, strict=True)]

    def _fits(self, record: Mapping[str, Any], answer: str) -> bool:
        found = self.pattern.fullmatch(answer.strip()) if self.whole else self.pattern.search(answer)
        if found is None or self.field is None:
            return found is not None
        # A group that took no part in the match is None.
        return (found[1] or "").strip() == str(record[self.field]).strip()


@register("reward", "number")
class LastNumber:
    """The last number of an answer, as GSM8K is judged (Cobbe et al. 2021, arXiv:2110.14168): 1 if it is the record's, else 0.

    Compared as numbers: 1,000 is 1000.0 and 1e3. The record's is the last in its text too.

    field: of the record, which has the right number
    tolerance: by how much it may differ
    """

    small: ClassVar[dict[str, str]] = {"field": "number"}
    telling: ClassVar[tuple[dict[str, Any], ...]] = ({"field": "number", "tolerance": 1.0},)

    def __init__(self, *, field: str = "answer", tolerance: float = 0.0):
        if not tolerance >= 0:
            raise ValueError(f"reward.tolerance must be at least 0, but is {tolerance}")
        self.field, self.needs, self.tolerance = field, (field,), Decimal(str(tolerance))

    def score(self, records: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> list[float]:
        return [float(self._fits(record, answer)) for record, answer in zip(records, answers, strict=True)]

    def _fits(self, record: Mapping[str, Any], answer: str) -> bool:
        right, given = last_number(str(record[self.field])), last_number(answer)
        if right is None:
            raise UserError(f"reward=number: the record's {self.field} has no number: {str(record[self.field])[:40]!r}")
        try:
            return given is not None and abs(given - right) <= self.tolerance
        except DecimalException:  # a number that is too large to be calculated with is not the right one
            return False


def last_number(text: str) -> Decimal | None:
    """The last number of a text; one with more digits in its exponent than Decimal knows is infinite."""
    found = NUMBER.findall(text)
    try:
        return Decimal(found[-1].replace(",", "")) if found else None
    except DecimalException:
        return Decimal("Infinity")


@register("reward", "length")
class Length:
    """A reward of length: 0 for an answer of `least` to `most` characters or words, and less the farther it is from there.

    What is missing is counted in shares of `least`, what is too much in shares of `most`; -1 at least (as the punishment of
    DAPO: Yu et al. 2025, arXiv:2503.14476, which is of tokens: alignment.overlong).

    least: so many are enough
    most: so many are not too many; null: any
    unit: what is counted
    """

    small: ClassVar[dict[str, int]] = {"least": 3, "most": 6}
    telling: ClassVar[tuple[dict[str, int], ...]] = ({"least": 2, "most": 4}, {"least": 5, "most": 6})

    def __init__(self, *, least: int = 1, most: int | None = None, unit: Literal["characters", "words"] = "characters"):
        if least < 0 or (most is not None and (most < 1 or most < least)):
            raise ValueError(
                f"reward.least={least} must be at least 0 and reward.most={most} no less than it and above 0"
            )
        self.least, self.most, self.unit, self.needs = least, most, unit, ()

    def score(self, records: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> list[float]:
        return [self._worth(len(a.split()) if self.unit == "words" else len(a.strip())) for a in answers]

    def _worth(self, n: int) -> float:
        if n < self.least:
            return (n - self.least) / self.least
        return max(-1.0, (self.most - n) / self.most) if self.most is not None and n > self.most else 0.0
