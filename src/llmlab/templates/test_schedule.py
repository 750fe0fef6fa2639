"""my_schedule: up, down, and never out of bounds."""

import pytest

from llmlab import registry
from llmlab.testing import learns


def schedule(**options: float):
    return registry.load("schedule", "my_schedule", options)()


def test_a_run_can_be_composed_with_it():
    learns("schedule=my_schedule")


def test_a_straight_line():
    line = schedule(warmup_share=0.2, floor=0.1)
    assert [line.factor(step, 10) for step in (0, 1, 2)] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert line.factor(6, 10) == pytest.approx(0.1 + 0.9 * 0.5)
    assert line.factor(10, 10) == line.factor(99, 10) == 0.1


def test_a_higher_power_falls_faster():
    assert schedule(power=2.0).factor(50, 100) < schedule(power=1.0).factor(50, 100)


@pytest.mark.parametrize("total", [1, 2, 3, 50])
def test_it_stays_within_bounds_at_any_length(total: int):
    assert all(0 < schedule().factor(step, total) <= 1 for step in range(total + 3))
