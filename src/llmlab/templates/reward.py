"""A reward of your own."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmlab.registry import register
from llmlab.twins import Given, twin


@register("reward", "my_reward")
class MyReward:
    """F1 of the words of an answer and of the right one (SQuAD: Rajpurkar et al. 2016, arXiv:1606.05250).

    `score` gives a number for each of a batch of answers; a record has the keys of a line of the user's file.
    """

    telling = ({"field": "other"},)

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


# Not of the class: `llmlab check` holds the part to what this says, at every setting of its options. What a twin is given, and
# which outputs it may give, is listed in the docstring of llmlab.check.twins.observers.reward.
@twin("reward", "my_reward", source="Rajpurkar et al. 2016, section 6.1")
def definition(given: Given) -> dict[str, np.ndarray]:
    def f1(right: list[str], said: list[str]) -> float:
        common = sum(min(right.count(word), said.count(word)) for word in set(right))
        precision, recall = common / max(1, len(said)), common / max(1, len(right))
        return 2 * precision * recall / (precision + recall) if common else 0.0

    right, said = given.inputs[given.options["field"]], given.inputs["answers"]
    scores = np.array([f1(r.lower().split(), a.lower().split()) for r, a in zip(right, said, strict=True)])
    return {f"scores/{i}": scores[i::6] for i in range(6)}
