import math

import numpy as np
import pytest

from llmlab.data.order import ROUNDS, index, indices
from llmlab.seeds import key

MASK = 2**64 - 1


def plain_index(seed, position, n):
    """The same permutation with Python's integers."""
    epoch, x = divmod(position, n)
    half = 1
    while 4**half < n:
        half += 1
    keys = [key(seed, "order", epoch, r) for r in range(ROUNDS)]
    while True:
        left, right = x >> half, x % 2**half
        for k in keys:
            m = (right + k) & MASK
            m = ((m ^ (m >> 30)) * 0xBF58476D1CE4E5B9) & MASK
            m = ((m ^ (m >> 27)) * 0x94D049BB133111EB) & MASK
            left, right = right, left ^ ((m ^ (m >> 31)) % 2**half)
        x = (left << half) | right
        if x < n:
            return x


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 16, 17, 100, 1000, 4097])
@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_each_epoch_is_a_permutation(n, epoch):
    assert sorted(indices(3, epoch * n + np.arange(n), n)) == list(range(n))


@pytest.mark.parametrize("n", [1, 2, 7, 64, 65, 1000, 10**9])
def test_equals_the_plain_twin(n):
    positions = [0, 1, 5, n - 1, n, 3 * n + n // 2]
    assert indices(11, np.array(positions), n).tolist() == [plain_index(11, p, n) for p in positions]
    assert [index(11, p, n) for p in positions] == [plain_index(11, p, n) for p in positions]


def test_epochs_and_seeds_have_orders_of_their_own():
    n = 500
    orders = {tuple(indices(seed, epoch * n + np.arange(n), n)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_a_small_domain_reaches_its_orders_evenly():
    """Chi-square of the 24 orders of 4 samples over 4,800 seeds, and of where each of 10 samples comes first."""
    orders = {}
    for seed in range(4800):
        order = tuple(indices(seed, np.arange(4), 4))
        orders[order] = orders.get(order, 0) + 1
    firsts = np.bincount([index(seed, 0, 10) for seed in range(2000)], minlength=10)
    assert len(orders) == math.factorial(4)
    assert sum((c - 200) ** 2 / 200 for c in orders.values()) < 60  # 23 degrees of freedom: p = 4e-5
    assert ((firsts - 200) ** 2 / 200).sum() < 35  # 9: p = 6e-5


def test_neighbours_do_not_stay_neighbours():
    n = 10_000
    order = indices(1, np.arange(n), n)
    assert abs(np.corrcoef(np.arange(n), order)[0, 1]) < 0.05
    assert (np.abs(np.diff(order)) == 1).mean() < 0.002


def test_no_samples():
    with pytest.raises(ValueError, match="at least one sample"):
        index(1, 0, 0)
