"""The statistics against scipy.stats, against examples worked by hand, and against A/A comparisons."""

import numpy as np
import pytest
import scipy.stats

from llmlab.lab.report import stats


def by_seed(values):
    return dict(enumerate(map(float, values), 1))


@pytest.mark.parametrize("n", [2, 3, 7, 40])
def test_paired_t(n):
    chance = np.random.default_rng(n)
    base = chance.normal(2.3, 0.1, n)
    own = base + chance.normal(0.02, 0.03, n)
    c = stats.compare({"a": by_seed(own)}, by_seed(base))["a"]
    theirs = scipy.stats.ttest_rel(own, base)
    low, high = theirs.confidence_interval(0.95)
    assert [c.p, c.adjusted, c.low, c.high] == pytest.approx([theirs.pvalue, theirs.pvalue, low, high], rel=1e-9)
    assert (c.n, c.level, c.sd) == (n, 0.05, pytest.approx((own - base).std(ddof=1)))
    half = scipy.stats.t.interval(0.95, n - 1, own.mean(), scipy.stats.sem(own))[1] - own.mean()
    assert stats.half_width(own.tolist()) == pytest.approx(half, rel=1e-9)


def test_by_hand():
    """Differences 1, 2, 3: mean 2, sd 1, t = 2 sqrt(3); with 2 degrees of freedom p = 1 - t / sqrt(2 + t^2)."""
    c = stats.compare({"a": {1: 2.0, 2: 4.0, 3: 6.0, 9: 1.0}}, {1: 1.0, 2: 2.0, 3: 3.0, 4: 0.0})["a"]
    t = 2 * 3**0.5
    assert (c.mean, c.sd, c.differences) == (2.0, 1.0, [1.0, 2.0, 3.0])
    assert c.p == pytest.approx(1 - t / (2 + t**2) ** 0.5)
    assert c.high - c.mean == pytest.approx(4.302652729911275 / 3**0.5)  # the table's t(0.975, 2)
    assert (c.seeds, c.only_here, c.only_baseline) == ([1, 2, 3], [9], [4])


def test_holm_by_hand():
    """p = .01, .04, .03, .005, as often worked: times 3, 1, 2, 4, and never less than a smaller one's."""
    adjusted, levels = stats.holm([0.01, 0.04, 0.03, 0.005])
    assert adjusted == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert levels == pytest.approx([0.05 / 3, 0.05 / 2, 0.05 / 2, 0.05 / 4])
    assert stats.holm([0.6, 0.7]) == ([1.0, 1.0], [0.025, 0.025])


def test_an_interval_leaves_out_0_where_holm_rejects():
    chance = np.random.default_rng(1)
    seen = set()
    for _ in range(200):
        base = chance.normal(0, 1, 4)
        variants = {k: by_seed(base + chance.normal(e, 1, 4)) for k, e in (("a", 0), ("b", 1.5), ("c", 3), ("d", -3))}
        for c in stats.compare(variants, by_seed(base)).values():
            assert (c.low > 0 or c.high < 0) == c.significant == (c.adjusted <= 0.05)
            seen.add((c.significant, c.level))
    assert {level for _, level in seen} == {0.05 / m for m in (1, 2, 3, 4)}


@pytest.mark.parametrize(("effect", "n"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_seeds_needed(effect, n):
    """The numbers that G*Power gives for a two-sided paired t-test at 0.05 with 80 % power."""
    assert stats.seeds_needed(effect, 0.05) == stats.seeds_needed(-effect, 0.05) == n


def test_seeds_needed_at_a_corrected_level_and_beyond_the_cap():
    n = stats.seeds_needed(0.7, 0.05 / 3)
    chance = np.random.default_rng(0)
    p = scipy.stats.ttest_1samp(chance.normal(0.7, 1, (20_000, n)), 0, axis=1).pvalue
    assert 0.79 < (p < 0.05 / 3).mean() < 0.83
    assert stats.seeds_needed(0.1, 0.05) is None
    assert stats.seeds_needed(0.0, 0.05) is None


def test_few_and_equal_seeds():
    one = stats.compare({"a": {1: 2.0}}, {1: 1.5})["a"]
    assert (one.mean, one.sd, one.low, one.p, one.adjusted, one.significant) == (0.5, None, None, None, None, False)
    none = stats.compare({"a": {2: 2.0}}, {1: 1.5})["a"]
    assert (none.n, none.mean, none.significant, none.identical) == (0, None, False, False)
    same = stats.compare({"a": {1: 1.5, 2: 1.0}}, {1: 1.5, 2: 1.0})["a"]
    assert same.identical and not same.significant and same.p == 1
    shifted = stats.compare({"a": {1: 2.5, 2: 2.0}}, {1: 1.5, 2: 1.0})["a"]
    assert shifted.significant and not shifted.identical and (shifted.low, shifted.high) == (1.0, 1.0)


@pytest.mark.parametrize(("variants", "seeds"), [(2, 2), (2, 3), (2, 8), (4, 3), (4, 5)])
def test_a_against_a(variants, seeds):
    """2,000 sweeps of variants that are all the same: some variant is called in about 5 % of them. Runs of one seed have
    much in common, as real ones do."""
    chance, sweeps, called = np.random.default_rng(7), 2000, 0
    for _ in range(sweeps):
        common = chance.normal(2.3, 0.1, seeds)
        losses = [by_seed(common + chance.normal(0, 0.01, seeds)) for _ in range(variants)]
        found = stats.compare({str(i): v for i, v in enumerate(losses[1:])}, losses[0])
        called += any(c.significant for c in found.values())
    assert (
        0.03 < called / sweeps < 0.065
    )  # three standard errors about 0.05; comparisons that share a baseline call fewer
