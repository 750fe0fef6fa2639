"""The statistics against scipy.stats, against examples worked by hand, and against A/A comparisons."""

import math
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats

from llmlab.report import power, stats


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


PAIRS = np.arange(2, stats.MOST_SEEDS + 1)


def linear_search(effect, level):
    """The first number of pairs whose exact power, both tails, is 80 %."""
    critical, shift = scipy.stats.t.isf(level / 2, PAIRS - 1), abs(effect) * PAIRS**0.5
    with np.errstate(all="ignore"):
        lower = np.nan_to_num(scipy.stats.nct.cdf(-critical, PAIRS - 1, shift))
        exact = scipy.stats.nct.sf(critical, PAIRS - 1, shift) + lower
    enough = (exact >= 0.8) | (np.isnan(exact) & (shift > critical + 6))  # NaN: scipy's, for large shifts
    return int(PAIRS[enough][0]) if enough.any() else None


def test_seeds_needed_is_what_a_linear_search_finds():
    chance = np.random.default_rng(3)
    effects = [*chance.uniform(0.15, 12, 150), *10 ** chance.uniform(-2, 3, 50), 1e300, math.inf]
    for effect in effects:
        level = float(chance.choice([0.05, 0.05 / 2, 0.05 / 3, 0.05 / 9, 0.01, 1e-6]))
        wanted = 2 if math.isinf(effect) else linear_search(effect, level)
        assert stats.seeds_needed(effect, level) == stats.seeds_needed(-effect, level) == wanted, (effect, level)


@pytest.mark.parametrize(
    ("differences", "level", "needed"), [((0.0128, 0.0090), 0.05 / 3, 4), ((3.6, 1.6), 0.05 / 3, 7)]
)
def test_the_clearest_effects_need_the_fewest_seeds(differences, level, needed):
    effect = stats.mean(differences) / stats.sd(differences)
    assert stats.seeds_needed(effect, level) == linear_search(effect, level) == needed


def test_the_power_of_both_tails():
    for n in (2, 3, 10, 200, 5000):
        for effect in (0.0, 1e-9, 1e-3, 0.3, 1.0):
            for level in (0.05, 0.05 / 3, 1e-4):
                critical, shift = scipy.stats.t.isf(level / 2, n - 1), effect * n**0.5
                exact = scipy.stats.nct.sf(critical, n - 1, shift) + scipy.stats.nct.cdf(-critical, n - 1, shift)
                if math.isfinite(exact):
                    assert power.power(effect, n, level) == pytest.approx(exact, abs=1e-12)
    assert power.power(0.0, 7, 0.03) == pytest.approx(0.03, abs=1e-14)  # nothing there: the level itself


def test_more_effect_needs_fewer_and_a_stricter_level_more():
    for level in (0.05, 0.05 / 3, 1e-4):
        by_effect = [stats.seeds_needed(e, level) or 999 for e in np.geomspace(0.1, 1e6, 60)]
        assert by_effect == sorted(by_effect, reverse=True) and by_effect[-1] in (2, 3)
    by_level = [stats.seeds_needed(1.3, level) for level in np.geomspace(0.05, 1e-8, 20)]
    assert by_level == sorted(by_level)
    rising = [power.power(0.6, n, 0.01) for n in range(2, 60)]
    assert rising == sorted(rising)


@pytest.mark.parametrize("scale", [1e-250, 1e-12, 1.0, 1e9, -3.0])
def test_seeds_needed_whatever_the_unit(scale):
    differences = [0.7, -0.1, 0.5, 0.3]
    c = stats.compare({"a": by_seed(x * scale for x in differences)}, by_seed([0] * 4))["a"]
    effect = np.mean(differences) / np.std(differences, ddof=1)
    assert (c.needed, c.needed_low, c.needed_high) == (linear_search(effect, 0.05), 5, None) == (10, 5, None)
    assert c.p == pytest.approx(scipy.stats.ttest_1samp(differences, 0).pvalue)


def test_the_range_is_that_of_the_effects_interval():
    """Its ends are the effects under which what was seen is as rare as one in ten, by scipy and by drawing."""
    effect, n = 1.0437, 4
    low, high = power.effect_interval(effect, n)
    t = effect * n**0.5
    assert scipy.stats.nct.sf(t, n - 1, low * n**0.5) == pytest.approx(0.1, abs=1e-9)
    assert scipy.stats.nct.cdf(t, n - 1, high * n**0.5) == pytest.approx(0.1, abs=1e-9)
    assert power.effect_interval(-effect, n) == pytest.approx((-high, -low))
    assert power.seeds_range(effect, n, 0.05) == (linear_search(high, 0.05), linear_search(low, 0.05))
    chance, true = np.random.default_rng(0), 0.9
    drawn = chance.normal(true, 1, (300, 3))
    held = [lo <= true <= hi for d in drawn for lo, hi in [power.effect_interval(d.mean() / d.std(ddof=1), 3)]]
    assert 0.75 < np.mean(held) < 0.86


def test_the_range_holds_the_number_and_is_open_where_nothing_may_be_there():
    chance = np.random.default_rng(5)
    for _ in range(60):
        n = int(chance.integers(2, 7))
        c = stats.compare({"a": by_seed(chance.normal(0.5, 1, n))}, by_seed([0] * n))["a"]
        if not c.significant:
            low, at, high = (k or 999 for k in (c.needed_low, c.needed, c.needed_high))
            assert n < low <= at <= high
    assert power.seeds_range(0.05, 3, 0.05)[1] is None  # no effect at all is well within the interval
    assert power.seeds_range(1e9, 2, 0.05) == (2, 2)


def test_scipy_stats_is_not_loaded():
    code = "import sys; from llmlab.report import stats as s; s.compare({'a': {1: 1., 2: 1.2}}, {1: 0.9, 2: 1.5})"
    subprocess.run([sys.executable, "-c", code + "; assert 'scipy.stats' not in sys.modules"], check=True)


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
def test_a_against_a(variants, seeds, monkeypatch):
    """2,000 sweeps of variants that are all the same: some variant is called in about 5 % of them. Runs of one seed have
    much in common, as real ones do."""
    monkeypatch.setattr(stats, "_needed", lambda *_: (None, None, None))  # 3 ms, 4,000 times, for what is not asked
    chance, sweeps, called = np.random.default_rng(7), 2000, 0
    for _ in range(sweeps):
        common = chance.normal(2.3, 0.1, seeds)
        losses = [by_seed(common + chance.normal(0, 0.01, seeds)) for _ in range(variants)]
        found = stats.compare({str(i): v for i, v in enumerate(losses[1:])}, losses[0])
        called += any(c.significant for c in found.values())
    assert (
        0.03 < called / sweeps < 0.065
    )  # three standard errors about 0.05; comparisons that share a baseline call fewer
