"""Intervals against scipy, and how often they hold what they are of."""

import numpy as np
import pytest

from llmlab.intervals import half_width, mean, shares, student, wilson


@pytest.mark.parametrize(("right", "n"), [(0, 10), (3, 20), (10, 10), (57, 64)])
def test_wilson_and_student_are_those_of_scipy(right, n):
    from scipy import stats

    theirs = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert wilson(right / n, n)[1:] == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    values = np.random.default_rng(right).normal(size=n).tolist()
    theirs = stats.t.interval(0.95, n - 1, loc=np.mean(values), scale=stats.sem(values))
    assert student(values)[1:] == pytest.approx(theirs)
    assert student(values[:1]) == (values[0], None, None) and half_width([1.0, 3.0]) and mean([1, 3]) == 2


def test_a_share_of_alike_draws_counts_them_once_and_one_of_independent_draws_all():
    alike = [0.0, 1.0] * 20
    assert shares(alike, 8) == pytest.approx(wilson(0.5, 39.0), abs=2e-2)
    assert shares([0.5] * 40, 8) == wilson(0.5, 320) and shares([1.0] * 40, 8) == wilson(1.0, 40)


@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_the_interval_of_a_share_holds_it_in_95_of_100(spread):
    chance = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        p = np.clip(0.8 + spread * chance.choice([-1, 0.5], 50, p=[1 / 3, 2 / 3]), 0, 1)
        found = shares((chance.binomial(8, p) / 8).tolist(), 8)
        held += found.low <= 0.8 <= found.high
    assert 0.92 <= held / 400 <= 0.98


@pytest.mark.parametrize("prompts", [1, 2, 5])
def test_few_values_tell_little_of_how_alike_their_draws_are(prompts):
    chance = np.random.default_rng(2)
    held = 0
    for p in chance.beta(1, 1, (1500, prompts)):
        found = shares((chance.binomial(8, p) / 8).tolist(), 8)
        held += found.low <= 0.5 <= found.high
    assert held / 1500 >= 0.9
    assert shares([0.5], 8) == wilson(0.5, 1)
