"""Rewards that a rule gives: 1 or 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from llmlab.registry import register


@register("reward", "exact")
class Exact:
    """Exact match (SQuAD: Rajpurkar et al. 2016, arXiv:1606.05250): 1 for the record's own answer, else 0.

    White space around both does not count.

    field: of the record, which has the right answer
    """

    telling = ({"field": "other"},)

    def __init__(self, *, field: str = "answer"):
        self.field, self.needs = field, (field,)

    def score(self, records: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> list[float]:
        pairs = zip(records, answers, strict=True)
        # Stricter than SQuAD's script, which also drops case, punctuation and articles.
        return [float(answer.strip() == str(record[self.field]).strip()) for record, answer in pairs]


@register("reward", "contains")
class Contains:
    """A verifiable reward (Tülu 3: Lambert et al. 2024, arXiv:2411.15124): 1 for an answer that has a text in it.

    text: that must be in it; None: the record's own
    field: of the record, which has the text where `text` is None
    """

    telling: ClassVar[tuple[dict[str, str], ...]] = ({"text": "seven"}, {"text": " 7"}, {"field": "other"})

    def __init__(self, *, text: str | None = None, field: str = "answer"):
        self.text, self.field, self.needs = text, field, (field,) if text is None else ()

    def score(self, records: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> list[float]:
        return [float(self.fits(a, self.wanted(r))) for r, a in zip(records, answers, strict=True)]

    def wanted(self, record: Mapping[str, Any]) -> str:
        # JSON may have the answer as a number.
        return str(record[self.field]).strip() if self.text is None else self.text

    def fits(self, answer: str, text: str) -> bool:
        return text in answer


@register("reward", "ends_with")
class EndsWith(Contains):
    """A verifiable reward (Tülu 3: Lambert et al. 2024, arXiv:2411.15124): 1 for an answer that ends with a text.

    White space at the end does not count.

    text: with which it must end; None: the record's own
    field: of the record, which has the text where `text` is None
    """

    telling = ({"text": "seven."}, {"text": "7 "}, {"text": " 7"}, {"field": "other"})

    def fits(self, answer: str, text: str) -> bool:
        return answer.rstrip().endswith(text.rstrip())
