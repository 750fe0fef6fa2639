"""my_window within a model, and against a loop over pairs."""

import pytest
import torch

from llmlab import registry
from llmlab.testing import cached_is_uncached, learns, looks_back_only, tiny


def window(**options: int):
    return registry.load("window", "my_window", options)()


def test_a_model_learns_with_it():
    learns("window=my_window", "window.left=4")


def test_generation_with_a_cache_is_that_without():
    model = tiny("window=my_window", "window.left=3", "window.dilation=3")
    looks_back_only(model)
    cached_is_uncached(model)


def test_a_loop_over_pairs():
    k = torch.arange(7)[None]
    want = [[q - j < 6 and (q - j) % 2 == 0 for j in range(7)] for q in range(7)]
    assert window(left=3, dilation=2).allowed(k.T, k, {}).tolist() == want


@pytest.mark.parametrize("dilation", [1, 2])
def test_what_it_covers_it_hides_nothing_of(dilation: int):
    made = window(left=3, dilation=dilation)
    for n in range(1, 9):
        k = torch.arange(n)[None]
        assert made.covers(n) == bool(made.allowed(k.T, k, {}).all())


def test_two_that_say_the_same_are_one():
    # By value: layers whose windows are equal share one lowered mask in each forward.
    assert window(left=5) == window(left=5) != window(left=6)
