"""Filters as they are typed: several in an order, options under their names, and a line for each mistake."""

import pytest

from llmlab.config import guess
from llmlab.config.compose import compose
from llmlab.errors import UserError
from llmlab.sweep.plan import make_plan
from llmlab.training.recipe import filters


def test_several_in_the_order_in_which_they_are_typed():
    words = ["filter=[regex,length,duplicates]", "filter.length.least=200", "filter.regex.drop=^[a-z]+\\d{3}|(x, y)$"]
    found = filters(compose(words).cfg)
    assert list(found) == ["regex", "length", "duplicates"]
    assert found["length"].options == {"least": 200, "most": None, "unit": "characters"}
    assert found["regex"].options["drop"] == "^[a-z]+\\d{3}|(x, y)$"  # as a shell hands it over, without quotes inside
    assert list(filters(compose(["filter=[duplicates,length]"]).cfg)) == ["duplicates", "length"]


def test_one_or_none_or_the_same_one_again(tmp_path):
    assert list(filters(compose(["filter=length"]).cfg)) == ["length"]
    assert filters(compose([]).cfg) == filters(compose(["~filter"]).cfg) == filters(compose(["filter=[]"]).cfg) == {}
    again = filters(compose(["filter=[length,regex]", "filter@filter.urls=regex", "filter.urls.drop=[a]"]).cfg)
    assert [(label, spec.name, spec.options.get("drop")) for label, spec in again.items()] == [
        ("length", "length", None),
        ("regex", "regex", None),
        ("urls", "regex", "[a]"),
    ]
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/clean.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /filter: [duplicates, length]\nfilter: {length: {least: 9}}\n"
    )
    found = filters(compose(["experiment=clean"], [str(tmp_path)]).cfg)
    assert list(found) == ["duplicates", "length"] and found["length"].options["least"] == 9


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("filter=[lenght]", "filter=lenght: there is no such filter; did you mean length"),
        (
            "filter=[length,length]",
            "filter=[length,length]: length is named twice; a second one has a name of its own, ",
        ),
        ("filter.length.least=2", "filter.length.least: nothing is chosen at filter.length; choose filter=length"),
        ("filter=regex filter.length.least=2", "nothing is chosen at filter.length; choose filter=[regex,length]"),
        ("filter.lenght.least=2", "filter.lenght.least: there is no 'lenght' in filter; did you mean length?"),
        (
            "filter=length filter.least=2",
            "filter.least: there is no such key in filter; type filter.length.least=VALUE",
        ),
        ("filter=length filter.length=2", "type filter=length, and its options as filter.length.OPTION=VALUE"),
        ("filter=length filter.length.lest=2", "no such key in filter.length (length); did you mean least?"),
        ("filter=length filter.length.least=x", "filter.length.least=x: must be a whole number, but is 'x'"),
        ("filter=length filter.length.unit=lines", "filter.length.unit must be one of characters, words, but is lines"),
        ("filter=length,duplicates", "several values are a sweep; add -m, or write key=[a,b] for a list"),
        ("data.filters=[length]", "data.filters: there is no such key in data; did you mean filter=NAME?"),
        ("dedup=true", "dedup: there is no such key; did you mean filter=duplicates?"),
    ],
)
def test_mistakes(typed, said):
    with pytest.raises(UserError) as e:
        compose(typed.split())
    assert said in str(e.value) and "\n" not in str(e.value)


def test_keys_that_can_be_completed_name_the_filter():
    assert "filter.length.least" in guess.declared() and "filter.least" not in guess.declared()


def test_a_sweep_over_lists():
    base = ["data=python_docs", "size=tiny"]
    plan = make_plan([*base, "filter=[length],[length,duplicates],[]"])
    typed = [[o for o in p.overrides if o.startswith("filter")] for p in plan.points]
    assert typed == [["filter=[length]"], ["filter=[length,duplicates]"], ["filter=[]"]]
    assert len({p.hash for p in plan.points}) == 3
    with pytest.raises(UserError, match="length is named twice"):
        make_plan([*base, "filter=[length],[length,length]"])
