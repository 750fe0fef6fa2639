"""A run that has diverged is stopped, and the step is named."""

import math

import pytest

from llmlab.training import guard
from llmlab.training.step_metrics import Summary


@pytest.mark.parametrize(("losses", "norms", "step"), [([1, math.nan], [1, 1], 20), ([1, 1], [math.inf, 1], 19)])
def test_the_step_that_is_no_number_is_named(losses, norms, step):
    with pytest.raises(guard.Diverged) as error:
        guard.check(Summary(losses, norms, {}), 20, 5.0)
    assert error.value.step == step


def test_an_explosion_is_a_mean_three_times_the_first_loss():
    assert guard.check(Summary([7.0, 6.0], [1.0, 1.0], {}), 2, None) == 7.0
    assert guard.check(Summary([20.0, 21.5], [1.0, 1.0], {}), 4, 7.0) == 7.0
    with pytest.raises(guard.Diverged, match="exploded"):
        guard.check(Summary([20.0, 23.0], [1.0, 1.0], {}), 4, 7.0)
    guard.check(Summary([2.9], [1.0], {}), 4, 0.01)  # a model that starts near 0 may rise to 3
