"""A reward of your own."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from llmlab.registry import register


@register("reward", "my_reward")
class MyReward:
    """F1 of the words of an answer and of the right one (SQuAD: Rajpurkar et al. 2016, arXiv:1606.05250).

    `score` gives a number for each of a batch of answers; a record has the keys of a line of the user's file.
    """

    def __init__(
        self,
        *,
        field: str = "answer",  # of the record, which has the right answer
    ):
        self.field, self.needs = field, (field,)

    def score(self, records: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> list[float]:
        return [self.f1(str(r[self.field]), a) for r, a in zip(records, answers, strict=True)]

    def f1(self, right: str, answer: str) -> float:
        one, other = Counter(right.lower().split()), Counter(answer.lower().split())
        # Counter's & takes the smaller of two counts: a word that is said twice counts twice only if it is twice in
        # both.
        return 2 * (one & other).total() / max(1, one.total() + other.total())
