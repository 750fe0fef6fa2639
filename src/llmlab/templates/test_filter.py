"""my_filter: drops what has many symbols for its words."""

import pytest

from llmlab import registry
from llmlab.config.compose import compose


def dropped(texts: list[str], **options: float) -> list[bool]:
    made = registry.load("filter", "my_filter", options)()
    return [made.reason(value) is not None for value in made.measure(texts)]


def test_a_run_can_be_composed_with_it_and_another():
    filters = compose(["filter=[length,my_filter]"]).cfg.filter
    assert list(filters) == ["length", "my_filter"]


def test_its_option_stands_under_its_name():
    composed = compose(["filter=my_filter", "filter.my_filter.most=0.2"])
    assert composed.cfg.filter["my_filter"].most == 0.2


def test_symbols_are_counted_by_word():
    texts = ["plain words and more", "# a # b", "one ... two … three", "", "#"]
    assert dropped(texts) == [False, True, True, False, True]
    assert dropped(texts, most=0.45) == [False, True, False, False, True]


def test_documents_are_judged_each_by_itself():
    made = registry.load("filter", "my_filter", {})()
    assert made.measure(["# a", "b"]) == [*made.measure(["# a"]), *made.measure(["b"])]


def test_a_wrong_option():
    with pytest.raises(ValueError, match="at least 0"):
        dropped(["a"], most=-1.0)
