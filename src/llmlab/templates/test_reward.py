"""my_reward: in proportion to the words that are right."""

import pytest

from llmlab import registry
from llmlab.config.compose import compose


def score(right: str, answer: str, **options: str) -> float:
    reward = registry.load("reward", "my_reward", options)()
    return reward.score([{"prompt": "?", "answer": right}], [answer])[0]


def test_a_run_can_be_composed_with_it():
    compose(["alignment=reinforce", "reward=my_reward"])


@pytest.mark.parametrize(
    ("answer", "worth"),
    [("the red fox", 1.0), ("The fox red", 1.0), ("red", 0.5), ("a red fox", 2 / 3), ("", 0.0), ("dog", 0.0)],
)
def test_words_that_are_right(answer: str, worth: float):
    assert score("the red fox", answer) == pytest.approx(worth)


def test_another_field_of_the_record():
    assert registry.load("reward", "my_reward", {"field": "label"})().needs == ("label",)
