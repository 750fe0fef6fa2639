"""A run that has diverged is stopped, and the step is named."""

import math

import pytest

from llmlab import registry
from llmlab.errors import UserError
from llmlab.training import guard
from llmlab.training.step_metrics import Summary

KL = ("none", "shown", "loss", "reward")


@pytest.mark.parametrize(("losses", "norms", "step"), [([1, math.nan], [1, 1], 20), ([1, 1], [math.inf, 1], 19)])
def test_the_step_that_is_no_number_is_named(losses, norms, step):
    with pytest.raises(guard.Diverged) as error:
        guard.check(Summary(losses, norms, {}), 20, 5.0)
    assert error.value.step == step


def test_bounds_of_ones_own_are_named_with_what_passed_them():
    summary = Summary([1.0, 2.0], [1.0, 1.0], {"kl": 3.0})
    guard.within(summary, 4, {"kl": 3.0, "loss": 1.5})
    for bounds, said in [
        ({"kl": 2.5}, "step 4: kl is 3, above train.stop_kl=2.5"),
        ({"loss": 1.4}, "loss is 1.5, above"),
    ]:
        with pytest.raises(guard.Diverged, match=said):
            guard.within(summary, 4, bounds)
    with pytest.raises(guard.Diverged):
        guard.within(Summary([1.0], [1.0], {"kl": math.nan}), 4, {"kl": 1.0})
    with pytest.raises(
        UserError, match="train.stop_kl=1: there is no kl in this run, which shows loss, reward; leave it out"
    ):
        guard.within(Summary([1.0], [1.0], {"reward": 0.0}), 4, {"kl": 1.0})


def test_what_shows_a_kl_is_known_before_a_run():
    names = [e.name for e in registry.index().values() if e.slot == "alignment"]
    always = {n for n in names if registry.declared("alignment", n, {}).attribute("shows_kl")}
    by_option = {n for n in names if "kl" in registry.index()["alignment", n].options} - {"kto"}
    assert always - by_option == {"kto", "online_dpo", "ppo"} and "grpo" in by_option
    for name in by_option:
        shows = {k: registry.declared("alignment", name, {"kl": k}).attribute("shows_kl") for k in KL}
        assert shows == {k: k != "none" for k in KL}


def test_an_explosion_is_a_mean_three_times_the_first_loss():
    assert guard.check(Summary([7.0, 6.0], [1.0, 1.0], {}), 2, None) == 7.0
    assert guard.check(Summary([20.0, 21.5], [1.0, 1.0], {}), 4, 7.0) == 7.0
    with pytest.raises(guard.Diverged, match="exploded"):
        guard.check(Summary([20.0, 23.0], [1.0, 1.0], {}), 4, 7.0)
    guard.check(Summary([2.9], [1.0], {}), 4, 0.01)  # a model that starts near 0 may rise to 3
