"""Win rates and the best of n against enumeration."""

import itertools
import math

import numpy as np
import pytest

from llmlab.scoring import measures

SCORES = np.array([0.5, 2.0, 2.0, -1.0, 0.5, 0.5])
VALUES = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 0.25])


@pytest.mark.parametrize("n", range(1, 7))
def test_the_best_of_n_is_the_mean_over_all_choices_of_n_and_over_ties(n):
    chosen = []
    for some in itertools.combinations(range(len(SCORES)), n):
        tied = [i for i in some if SCORES[i] == max(SCORES[list(some)])]
        chosen.append(VALUES[tied].mean())
    found = measures.chances(SCORES, n)
    assert found.sum() == pytest.approx(1, abs=1e-12) and found @ VALUES == pytest.approx(np.mean(chosen), abs=1e-12)


def test_the_best_of_n_of_right_or_wrong_answers_is_one_less_all_wrong():
    # 3 right of 10: all of n are wrong in C(7, n) of C(10, n) choices, as pass@k has it.
    rewards = np.array([1.0] * 3 + [0.0] * 7)
    for n in (1, 4, 8):
        assert measures.chances(rewards, n) @ rewards == pytest.approx(1 - math.comb(7, n) / math.comb(10, n))


def test_wins_are_counted_over_all_pairs_and_ties_are_half():
    chance = np.random.default_rng(0)
    ours, theirs = chance.integers(0, 3, (5, 4)), chance.integers(0, 3, (5, 6))
    found = measures.wins(ours, theirs)
    for p, m in itertools.product(range(5), range(4)):
        pairs = [1.0 if ours[p, m] > t else 0.5 if ours[p, m] == t else 0.0 for t in theirs[p]]
        assert found[p, m] == pytest.approx(np.mean(pairs))
    assert measures.wins(ours, ours).mean() == 0.5


def test_the_kl_of_the_best_of_n_of_different_answers():
    # The best of n of K equally likely answers: the k-th has (k^n - (k-1)^n) / K^n, for K without bound.
    k = np.arange(1, 200_001) / 200_000
    p = np.diff(np.concatenate([[0.0], k**4]))
    assert measures.best_of_kl(4) == pytest.approx((p * np.log(p * len(k))).sum(), abs=1e-4)
    assert measures.best_of_kl(1) == 0
