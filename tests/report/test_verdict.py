"""Verdicts at their boundaries, and numbers as they are written."""

import itertools
import math

import pytest

from llmlab.report import verdict
from llmlab.report.stats import ALPHA, Comparison


def comparison(n, mean=0.02, adjusted=None, differences=None, **more):
    """A comparison over n pairs; an interval of 0.01 to each side where there are several."""
    half = {} if n < 2 else {"low": mean - 0.01, "high": mean + 0.01, "level": 0.05, "p": adjusted, "sd": 0.1}
    return Comparison(
        list(range(1, n + 1)), [], [], differences or [mean] * n, mean, adjusted=adjusted, **(half | more)
    )


def words(c, higher=False):
    return verdict.word(c, higher)


def test_words():
    assert words(None) == words(comparison(0)) == "no common seed"
    assert words(comparison(1)) == words(comparison(1, adjusted=0.0)) == "one seed"
    assert words(comparison(1, 0.0, differences=[0.0])) == "one seed"  # equal by chance, for all that one seed tells
    assert words(comparison(2, 0.0, 1.0, [0.0, 0.0])) == "identical"
    assert words(comparison(2, 0.0, 1.0, [0.1, -0.1])) == "not distinguishable"
    for sign, higher in itertools.product((1, -1), (False, True)):
        for n in (2, 3, 30):
            better = "better" if (sign > 0) == higher else "worse"
            assert words(comparison(n, 0.02 * sign, 0.001), higher) == better
            assert words(comparison(n, 0.02 * sign, ALPHA), higher) == better  # 0.05 itself is significant
            above = math.nextafter(ALPHA, 1)
            assert words(comparison(n, 0.02 * sign, above), higher) == "not distinguishable"
    assert ALPHA == 0.05


def needed(at, low, high):
    return comparison(4, adjusted=0.2, needed=at, needed_low=low, needed_high=high)


@pytest.mark.parametrize(
    ("numbers", "said"),
    [((9, 5, 40), "about 9 would be needed (5 to 40)"), ((9, 5, None), "about 9 would be needed (5 or more)"),
     ((9, 9, 9), "about 9 would be needed"), ((None, 12, None), "more than 200 would be needed (12 or more)"),
     ((None, None, None), "more than 200 would be needed")],
)  # fmt: skip
def test_how_many_seeds_are_needed(numbers, said):
    c = needed(*numbers)
    assert verdict.short(c, "not distinguishable") == f"not distinguishable with 4 seeds; {said}"
    assert verdict.sentence("b", "a", c, "not distinguishable", 2.0, 2) == (
        f"b is not distinguishable from a with 4 seeds; {said}: +0.02 (+1.0 %), 95 % interval [+0.01, +0.03], p = 0.200."
    )


def test_short():
    assert verdict.short(comparison(1), "one seed") == "one seed: no interval, no verdict"
    assert verdict.short(comparison(2, 0.0), "identical") == "identical in 2 seeds"
    assert verdict.short(comparison(3), "better") == "better"
    for word in ("baseline", "no common seed", "not comparable", "not distinguishable", "identical"):
        assert verdict.short(None, word) == word


def sentence(c, word, base=2.0, digits=4):
    return verdict.sentence("b", "a", c, word, base, digits)


def test_sentences():
    none = "b has no seed in common with a: run both with the same seeds."
    assert sentence(None, "no common seed") == sentence(comparison(0), "no common seed") == none
    one = "in one seed: that gives no interval and no verdict. Run more seeds, e.g. seed=1,2,3."
    assert sentence(comparison(1), "one seed") == f"b differs from a by +0.0200 (+1.0 %) {one}"
    both = "b is identical to a in both seeds: every loss is equal, to the last digit."
    assert sentence(comparison(2, 0.0), "identical") == both
    assert sentence(comparison(3, 0.0), "identical") == both.replace("both", "all 3")
    c = comparison(3, -0.02, 0.00005, level=0.05 / 3)
    said = "(−1.0 %), 98.33 % interval [−0.0300, −0.0100], p < 0.0001, 3 seeds."
    assert sentence(c, "better") == f"b is better than a: −0.0200 {said}"
    assert sentence(c, "worse", base=-2.0) == f"b is worse than a: −0.0200 {said}"  # a share of how large it is
    assert (
        sentence(c, "worse", base=0.0) == f"b is worse than a: −0.0200,{said.partition(',')[2]}"
    )  # there is none of 0
    assert sentence(c, "better", digits=5).startswith("b is better than a: −0.02000 (")


@pytest.mark.parametrize(
    ("level", "said"),
    [(None, "95 %"), (0.05, "95 %"), (0.025, "97.5 %"), (0.05 / 3, "98.33 %"), (0.05 / 40, "99.88 %")],
)
def test_the_level_of_an_interval(level, said):
    assert verdict.interval_level(comparison(3, level=level)) == said


def test_p_values_are_never_rounded_to_0_or_over_the_level():
    assert verdict.p(None) == ""
    assert [verdict.p(x) for x in (0.0, 0.00009999, 0.0001, 0.00051, 0.0009999, 0.001, 0.0123, 0.05, 1.0)] == [
        "<0.0001", "<0.0001", "0.0001", "0.0005", "0.0010", "0.001", "0.012", "0.050", "1.000",
    ]  # fmt: skip


def test_signed_numbers_and_shares():
    assert [verdict.signed(x) for x in (0.0, 0.12345, -0.12345, 12)] == ["+0.0000", "+0.1235", "−0.1235", "+12.0000"]
    assert verdict.signed(-0.5, 1) == "−0.5" and verdict.format_number(-0.5, 1) == "−0.5"
    assert verdict.format_number(2.0) == "2.0000" and verdict.format_number(2.34567, 2) == "2.35"
    shares = (0.0, 0.5, -0.0123, 0.001, -0.001, 0.00099, -0.00001)
    want = ["+0.0 %", "+50.0 %", "−1.2 %", "+0.1 %", "−0.1 %", "+0.099 %", "−0.001 %"]
    assert [verdict.percent(x) for x in shares] == want


def test_intervals():
    c = comparison(3)
    assert verdict.interval(c) == "[+0.0100, +0.0300]" and verdict.interval(c, 2) == "[+0.01, +0.03]"
    for missing in ({"low": None}, {"high": None}, {"low": None, "high": None}):
        assert verdict.interval(comparison(3, **missing)) == ""


def test_counts_names_and_sizes():
    assert [verdict.count(n, "seed") for n in (0, 1, 2, 1200)] == ["0 seeds", "1 seed", "2 seeds", "1,200 seeds"]
    plain, long = ["a", "b"], ["a, x=1", "b"]
    assert verdict.listed(plain) == verdict.joined_names(plain) == "a, b"
    assert verdict.listed(long) == "a, x=1; b" and verdict.joined_names(long) == "2 variants"
    assert verdict.joined_names(long[:1]) == "a, x=1"
    sizes = (2**20, 1.4 * 2**20, 2000 * 2**20, 10 * 2**30 - 1, 10 * 2**30, 80 * 2**30)
    assert [verdict.memory(size) for size in sizes] == [
        "1 MiB", "1 MiB", "2,000 MiB", "10,240 MiB", "10.0 GiB", "80.0 GiB",
    ]  # fmt: skip


def test_what_every_report_says_of_its_method():
    assert "0.05/m for the smallest of m p-values, 0.05/(m−1) for the next" in verdict.METHOD
    assert "80 % power" in verdict.NEEDED and "its 80 % confidence interval" in verdict.NEEDED
    assert "uncorrected 95 % interval" in verdict.MEANS
