"""Comparisons: Holm's correction against closed testing, the numbers of few and of equal pairs, and what leaves them alone."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from llmlab.report import stats
from llmlab.report.power import seeds_needed, seeds_range
from llmlab.report.stats import compare, half_width, holm, p_value


def closed_testing(p):
    """Adjusted p by brute force: a hypothesis falls where Bonferroni's test of every intersection with it does."""
    each = range(len(p))
    subsets = [s for k in range(1, len(p) + 1) for s in itertools.combinations(each, k)]
    return [max(min(1.0, len(s) * min(p[j] for j in s)) for s in subsets if i in s) for i in each]


@pytest.mark.parametrize("tests", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_holm_is_closed_testing(tests, alpha):
    chance = np.random.default_rng(tests)
    stopped = set()
    for i in range(60):
        p = (chance.uniform(0, 1, tests) ** (1 + i % 4 * 2)).round(3 if i % 2 else 1).tolist()  # with ties
        adjusted, levels = holm(p, alpha)
        assert adjusted == pytest.approx(closed_testing(p), abs=1e-15)
        assert [x <= level for x, level in zip(p, levels, strict=True)] == [a <= alpha for a in adjusted]
        rejected = sum(a <= alpha for a in adjusted)
        order = sorted(range(tests), key=lambda j: p[j])
        want = [alpha / (tests - min(k, rejected)) for k in range(tests)]  # the last level holds for the rest
        assert [levels[j] for j in order] == pytest.approx(want)
        stopped.add(rejected)
    assert len(stopped) > 1
    assert holm([], alpha) == ([], [])


def test_a_p_at_the_level_is_rejected():
    """By Holm and by the word: p = 0.05 exactly, alone and as the smaller of two at 0.025."""
    assert holm([0.05]) == ([0.05], [0.05])
    adjusted, levels = holm([0.025, 0.05])
    assert adjusted == [0.05, 0.05] and levels == [0.025, 0.05]
    at = stats.Comparison([1, 2], [], [], [1.0, 2.0], adjusted=0.05)
    above = stats.Comparison([1, 2], [], [], [1.0, 2.0], adjusted=math.nextafter(0.05, 1))
    assert at.significant and not above.significant and not stats.Comparison([], [], [], []).significant


def test_at_the_level_itself_no_more_seeds_are_needed(monkeypatch):
    base, values = {1: 0.0, 2: 0.0}, {1: 1.0, 2: 2.0}
    for p, more in ((0.05, False), (math.nextafter(0.05, 1), True)):
        monkeypatch.setattr(stats, "p_value", lambda differences, p=p: p)
        c = compare({"a": values}, base)["a"]
        assert c.significant != more and (c.needed is not None) == more


@pytest.mark.parametrize("n", [2, 3, 10])
def test_p_and_interval_are_scipys(n):
    chance = np.random.default_rng(n)
    for mean in (0.0, 0.5, -3.0):
        d = chance.normal(mean, 1, n).tolist()
        theirs = scipy.stats.ttest_1samp(d, 0)
        assert p_value(d) == pytest.approx(theirs.pvalue, rel=1e-9) == p_value([-x for x in d])
        for level in (0.05, 0.01, 0.3):
            low, high = theirs.confidence_interval(1 - level)
            assert 2 * half_width(d, level) == pytest.approx(high - low, rel=1e-9)
    assert half_width(d) == half_width(d, 0.05)


def test_one_value_has_a_mean_and_nothing_else():
    assert stats.mean([3.0]) == 3.0
    assert stats.sd([3.0]) is None and half_width([3.0]) is None and p_value([3.0]) is None
    assert stats.sd([]) is None and p_value([]) is None


def test_equal_values():
    """No spread: certain of 0 where all are 0, certain that it isn't where all are another."""
    assert (stats.sd([2.0] * 3), half_width([2.0] * 3), p_value([2.0] * 3), p_value([0.0] * 3)) == (0, 0, 0, 1)
    found = compare({"up": {1: 1.5, 2: 2.5}, "same": {1: 1.0, 2: 2.0}, "down": {1: 0.5, 2: 1.5}}, {1: 1.0, 2: 2.0})
    up, same, down = found.values()
    assert (up.low, up.mean, up.high, up.p, up.needed) == (0.5, 0.5, 0.5, 0.0, None) and up.significant
    assert (down.low, down.high, down.p) == (-0.5, -0.5, 0.0) and down.significant
    assert same.identical and not up.identical and not same.significant
    assert (same.p, same.adjusted, same.needed, same.needed_low, same.needed_high) == (1.0, 1.0, None, None, None)
    for differences, identical in (
        ([], False),
        ([0.0], True),
        ([0.0, -0.0], True),
        ([0.0, 1e-300], False),
        ([1.0], False),
    ):
        seeds = list(range(len(differences)))
        assert stats.Comparison(seeds, [], [], differences).identical == identical


def test_sums_lose_no_digit():
    values = [1e16, 1.0, -1e16, 1.0]
    assert stats.mean(values) == 0.5
    tiny = [1e-200, 3e-200]
    assert stats.sd(tiny) == pytest.approx(2**0.5 * 1e-200)  # the squares would be 0
    assert p_value(tiny) == pytest.approx(p_value([1.0, 3.0]))


def test_pairs_are_those_that_both_have():
    base = {5: 1.0, 3: 2.0, 9: 4.0, 7: 0.5}
    found = compare({"few": {9: 5.0, 1: 0.0, 3: 2.5, 2: 0.0}, "one": {7: 1.0}, "none": {8: 1.0}}, base)
    few, one, none = found.values()
    assert (few.n, few.seeds, few.differences) == (2, [3, 9], [0.5, 1.0])
    assert (few.only_here, few.only_baseline) == ([1, 2], [5, 7])
    assert (one.n, one.mean, one.seeds, one.only_here, one.only_baseline) == (1, 0.5, [7], [], [3, 5, 9])
    for lone in (one, none):
        assert {lone.sd, lone.low, lone.high, lone.level, lone.p, lone.adjusted, lone.needed} == {None}
    assert (none.n, none.mean, none.differences, none.only_here, none.only_baseline) == (0, None, [], [8], [3, 5, 7, 9])
    # A variant of one seed is not tested, and so makes no level stricter.
    assert few == compare({"few": {9: 5.0, 1: 0.0, 3: 2.5, 2: 0.0}}, base)["few"] and few.level == 0.05
    assert compare({}, base) == {}
    assert compare({"one": {7: 1.0}}, base)["one"] == one


def losses(seed=0, variants=3, n=4, spread=1.0):
    chance = np.random.default_rng(seed)
    base = dict(enumerate(chance.normal(2.3, 0.1, n).tolist(), 1))
    shifts = chance.normal(0, spread, variants)
    return {
        f"v{i}": {s: v + shift + chance.normal(0, 1) for s, v in base.items()} for i, shift in enumerate(shifts)
    }, base


@pytest.mark.parametrize("seed", range(6))
def test_a_comparison_is_put_together_of_its_parts(seed):
    variants, base = losses(seed, spread=2.5)
    found = compare(variants, base)
    p = {name: p_value([v[s] - base[s] for s in base]) for name, v in variants.items()}
    adjusted, levels = holm(list(p.values()))
    for (name, c), wanted, level in zip(found.items(), adjusted, levels, strict=True):
        half = half_width(c.differences, level)
        assert (c.p, c.adjusted, c.level) == (p[name], wanted, level)
        assert (c.low, c.high) == (c.mean - half, c.mean + half)
        assert (c.low > 0 or c.high < 0) == c.significant
        if c.significant:
            assert (c.needed, c.needed_low, c.needed_high) == (None, None, None)
        else:  # more than there were
            effect = c.mean / c.sd
            numbers = (seeds_needed(effect, level), *seeds_range(effect, c.n, level))
            assert (c.needed, c.needed_low, c.needed_high) == tuple(k and max(k, c.n + 1) for k in numbers)


def test_more_seeds_are_needed_than_were_too_few():
    """At four seeds just short of significance the effect's interval has ends that would need fewer."""
    d = [1.0, 1.0, 1.0, 0.05]
    c = compare({"a": dict(enumerate(d))}, dict.fromkeys(range(4), 0.0))["a"]
    more = compare({"a": dict(enumerate([1.0, 1.0, 1.0, 0.0]))}, dict.fromkeys(range(4), 0.0))["a"]
    assert c.significant and c.needed is None
    assert not more.significant and more.p > 0.05 and more.needed_low == 5 <= more.needed
    assert seeds_range(more.mean / more.sd, 4, 0.05)[0] < 5


@pytest.mark.parametrize("seed", [1, 2])
def test_what_leaves_a_comparison_alone(seed):
    """The order of seeds and variants; the unit, but for differences; the side, but for signs."""
    variants, base = losses(seed)
    found = compare(variants, base)
    turned = compare({k: dict(reversed(v.items())) for k, v in reversed(variants.items())}, base)
    assert turned == found
    assert list(turned) == list(reversed(found))
    scaled, mirrored = (
        compare(
            {k: {s: by * x for s, x in v.items()} for k, v in variants.items()}, {s: by * x for s, x in base.items()}
        )
        for by in (8, -1)
    )
    for name, c in found.items():
        for other, factor in ((scaled[name], 8), (mirrored[name], -1)):
            alike = ("p", "adjusted", "level", "needed", "needed_low", "needed_high")
            assert [getattr(other, k) for k in alike] == [getattr(c, k) for k in alike]
            assert (other.mean, other.sd) == (factor * c.mean, abs(factor) * c.sd)  # a power of 2 rounds nothing
        assert (mirrored[name].low, mirrored[name].high) == (-c.high, -c.low)


def test_the_interval_covers_the_difference_as_often_as_it_says():
    """5,000 differences of 3 pairs: three standard errors about 95 %."""
    chance = np.random.default_rng(4)
    held = 0
    for d in chance.normal(0.3, 1, (5000, 3)).tolist():
        half = half_width(d)
        held += abs(stats.mean(d) - 0.3) <= half
    assert 0.94 < held / 5000 < 0.96
