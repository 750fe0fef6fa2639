"""Power and the effect's interval against Owen's closed form of the noncentral t, which shares no step with ours."""

import math

import numpy as np
import pytest
from scipy.special import chdtr, ndtr, owens_t, stdtrit

from llmlab.report import power
from llmlab.report.power import effect_interval, seeds_needed, seeds_range


def owen(t, df, shift):
    """P(T <= t) of the noncentral t with whole degrees of freedom (Owen 1965, Biometrika 52, pages 437-446)."""
    a, b = t / math.sqrt(df), df / (df + t * t)
    first = a * math.sqrt(b) * _density(shift * math.sqrt(b)) * ndtr(shift * a * math.sqrt(b))
    terms = [first, b * (shift * a * first + a * _density(shift) / math.sqrt(2 * math.pi))]
    factor = 1.0
    for k in range(2, df - 1):
        factor = 1.0 if k == 2 else 1 / ((k - 2) * factor)
        terms.append((k - 1) / k * b * (factor * shift * a * terms[-1] + terms[-2]))
    if df % 2:
        odd = sum(terms[1 : df - 1 : 2]) if df > 1 else 0.0
        return ndtr(-shift * math.sqrt(b)) + 2 * owens_t(shift * math.sqrt(b), a) + 2 * odd
    return ndtr(-shift) + math.sqrt(2 * math.pi) * sum(terms[: df - 1 : 2])


def _density(x):
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def exact_power(effect, n, level):
    critical, shift = -float(stdtrit(n - 1, level / 2)), effect * math.sqrt(n)
    return 1 - owen(critical, n - 1, shift) + owen(-critical, n - 1, shift)


PAIRS = (2, 3, 4, 5, 8, 13, 40, 101, 200)
LEVELS = (0.3, 0.05, 0.05 / 7, 1e-4)


@pytest.mark.parametrize("n", PAIRS)
def test_power_is_owens(n):
    """At effects for which the power is anything from the level to 1, where the integrand is steep and where it is flat."""
    for level in LEVELS:
        critical = -float(stdtrit(n - 1, level / 2))
        for shift in [0.0, 0.01, 0.3, 1, 2, *critical * np.array([0.5, 0.8, 1, 1.2, 1.6]), critical + 3, critical + 9]:
            effect = float(shift) / math.sqrt(n)
            ours = power.power(effect, n, level)
            assert ours == pytest.approx(exact_power(effect, n, level), abs=2e-12), (level, shift)
            assert power.power(-effect, n, level) == ours


def test_the_closed_form_is_right():
    """Owen's formula as it stands here, by counting drawn ratios and at a shift of 0."""
    chance = np.random.default_rng(0)
    for df, shift, t in ((1, 0.7, 2.0), (2, 1.5, 1.0), (5, -1.0, 0.3), (6, 2.0, 3.0)):
        drawn = (chance.normal(shift, 1, 200_000)) / np.sqrt(chance.chisquare(df, 200_000) / df)
        assert (drawn <= t).mean() == pytest.approx(owen(t, df, shift), abs=0.005)
    for df in (1, 2, 3, 8, 99):
        assert owen(float(stdtrit(df, 0.93)), df, 0.0) == pytest.approx(0.93, abs=1e-13)


@pytest.mark.parametrize("n", PAIRS[:-2])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.5])
def test_the_effects_interval_inverts_owens(n, confidence):
    tail = (1 - confidence) / 2
    for effect in (0.003, 0.1, 0.5, 1.0, 2.5, 10.0):
        low, high = effect_interval(effect, n, confidence)
        t = effect * math.sqrt(n)
        assert 1 - owen(t, n - 1, low * math.sqrt(n)) == pytest.approx(tail, abs=1e-10)
        assert owen(t, n - 1, high * math.sqrt(n)) == pytest.approx(tail, abs=1e-10)
        assert effect_interval(-effect, n, confidence) == (-high, -low)


@pytest.mark.parametrize("confidence", [0.2, 0.9998, 0.999999])
def test_an_interval_of_few_pairs_reaches_far(confidence):
    """Ends that lie far from where the search for them begins, on both sides."""
    tail = (1 - confidence) / 2
    for n in (2, 3, 8):
        for effect in (10.0, 1e3, 1e6):
            low, high = effect_interval(effect, n, confidence)
            t = effect * math.sqrt(n)
            assert 1 - owen(t, n - 1, low * math.sqrt(n)) == pytest.approx(tail, abs=2e-11)
            assert owen(t, n - 1, high * math.sqrt(n)) == pytest.approx(tail, abs=2e-11)


def test_an_effect_of_0_has_the_normals_interval():
    """T > 0 exactly where Z + shift > 0, whatever it is divided by."""
    for n in PAIRS:
        half = 1.2815515655446004 / math.sqrt(n)  # the normal's 90 % point
        with np.errstate(all="raise"):
            assert effect_interval(0.0, n) == pytest.approx((-half, half), rel=1e-9)
    assert effect_interval(0.0, 3, 0.0) == (0.0, 0.0)  # found at once, to the last digit
    assert effect_interval(math.inf, 3) == (math.inf, math.inf)
    assert effect_interval(-math.inf, 3) == (-math.inf, -math.inf)


def test_tails_are_a_distribution():
    """Of any t they share what lies beyond it; at 0 that is everything; a shift beyond all measure leaves one of them."""
    for df in (1, 4, 30):
        for shift in (-3.0, -0.4, 0.0, 1.7):
            upper, lower = power._tails(shift, 0.0, df)
            assert upper == pytest.approx(ndtr(shift)) and upper + lower == pytest.approx(1)
            upper, lower = power._tails(shift, 1.3, df)
            assert power._tails(-shift, 1.3, df) == pytest.approx((lower, upper), abs=1e-13)
            assert upper == pytest.approx(1 - owen(1.3, df, shift), abs=1e-12)
            assert lower == pytest.approx(owen(-1.3, df, shift), abs=1e-12)
    with np.errstate(all="raise"):
        assert power._tails(1e200, 3.0, 2) == (1.0, 0.0) and power._tails(-1e200, 3.0, 2) == (0.0, 1.0)
    for df in (1, 2, 7):  # beside which the normal's spread is nothing: S alone decides
        for factor in (0.5, 2.0):
            upper, lower = power._tails(factor * 1e150, 1e150, df)
            assert upper == pytest.approx(chdtr(df, df * factor**2), abs=1e-12) and lower == 0
        assert power._tails(0.7, 1e-120, df) == pytest.approx((ndtr(0.7), ndtr(-0.7)), abs=1e-12)
    upper, lower = power._tails(1e90, 3.0, 2)
    assert (upper, lower) == pytest.approx((1.0, 0.0), abs=1e-12)


def test_an_interval_takes_few_integrals(monkeypatch):
    """A report has one of each variant that isn't distinguishable. It begins where the normal has its ends, and false
    position halves what stands still: without one of these it takes 14 to 22 for both ends."""
    calls, tails = [], power._tails
    monkeypatch.setattr(power, "_tails", lambda *args: calls.append(args) or tails(*args))
    each = []
    for n in (2, 3, 5, 20, 100):
        for effect in (0.0, 0.01, 0.2, 1.0, 5.0):
            calls.clear()
            effect_interval(effect, n)
            each.append(len(calls))
    assert sum(each) / len(each) < 13.5 and max(each) <= 20


def first_with_power(effect, level, most):
    return next((n for n in range(2, most + 1) if exact_power(effect, n, level) >= 0.8), None)


def test_the_number_of_pairs_is_the_first_that_has_80_percent():
    for effect in (0.25, 0.33, 0.5, 0.71, 1.0, 1.9, 4.0, 30.0):
        for level in (0.05, 0.05 / 4):
            want = first_with_power(effect, level, 200)
            assert seeds_needed(effect, level) == want
            if want and want > 2:  # the cap is the last number that is given
                assert seeds_needed(effect, level, want) == want
                assert seeds_needed(effect, level, want - 1) is None


@pytest.mark.parametrize("most", [3, 10, 200])
def test_a_power_of_80_percent_is_enough(monkeypatch, most):
    """Whatever rises with the number of pairs is met at the first that has it, to the last digit."""
    for first in range(2, most + 2):
        monkeypatch.setattr(power, "power", lambda effect, n, level, first=first: 0.8 if n >= first else 0.79)
        assert seeds_needed(1.0, 0.05, most) == (first if first <= most else None)


def test_the_cap_is_200():
    """The effect of which 200 pairs are just enough, and one that takes 201."""
    low, high = 0.19, 0.21
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if exact_power(middle, 200, 0.05) >= 0.8 else (middle, high)
    assert seeds_needed(high + 1e-9, 0.05) == 200 and seeds_needed(low - 1e-9, 0.05) is None
    assert seeds_needed(low - 1e-9, 0.05, most=201) == 201


@pytest.mark.parametrize("effect", [-2.0, -0.5, 0.1, 0.7, 1.4, 3.0])
@pytest.mark.parametrize("n", [2, 4, 9])
def test_the_range_is_that_of_the_intervals_ends(effect, n):
    low, high = sorted(map(abs, effect_interval(effect, n)))
    crosses = math.prod(effect_interval(effect, n)) <= 0
    fewest, most = seeds_range(effect, n, 0.05)
    assert fewest == first_with_power(high, 0.05, 200)
    assert most == (None if crosses else first_with_power(low, 0.05, 200))
    assert seeds_range(-effect, n, 0.05) == (fewest, most)
    assert seeds_range(effect, n, 0.05, most=3) == tuple(k if k and k <= 3 else None for k in (fewest, most))
