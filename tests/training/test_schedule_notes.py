"""A learning rate that a run never comes to."""

import pytest

from llmlab import registry
from llmlab.training.schedule_notes import notes

NAMES = [name for slot, name in registry.index() if slot == "schedule"]


def said(name, horizon, last_step=None, **options):
    part = registry.load("schedule", name, options)()
    shown = {"_part_": name, "warmup_steps": None, "warmup_share": 0.05, **options}
    return notes(part, shown, horizon, last_step or horizon)


@pytest.mark.parametrize("name", NAMES)
def test_a_warm_up_longer_than_the_run(name):
    (line,) = said(name, 146, warmup_steps=100_000)
    assert line.startswith(f"schedule={name}: the learning rate ")
    if name == "wsd":  # its decay begins at step 131 whatever the warm-up
        assert "leaps from 0.0013 to 1 of optimizer.lr at step 132" in line
    else:
        assert "never exceeds 0.0015 of optimizer.lr in 146 steps" in line
    assert "lower schedule.warmup_steps (it is 100,000; leave it out for 7, schedule.warmup_share=0.05" in line


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("horizon", [1, 2, 3, 4, 20, 100, 1172, 50_000])
def test_the_defaults_have_none(name, horizon):
    found = said(name, horizon)
    if name == "wsd" and 3 <= horizon < 15:
        assert ["would come behind the last" in line for line in found] == [True]  # a tenth of it rounds to no step
    else:
        assert found == []


@pytest.mark.parametrize("name", NAMES)
def test_a_warm_up_over_half_of_the_run(name):
    assert said(name, 100, warmup_share=0.5) == []
    (line,) = said(name, 100, warmup_share=0.7)
    assert "only: lower schedule.warmup_share (it is 0.7)" in line


@pytest.mark.parametrize("name", NAMES)
def test_max_steps_ends_the_run_in_its_warm_up(name):
    (line,) = said(name, 1000, last_step=20)
    assert "trainer.max_steps=20 ends the run before the learning rate exceeds 0.4" in line.replace("0.39", "0.4")
    assert "budget.steps=20" in line
    assert said(name, 1000, last_step=60) == []


def test_a_decay_that_begins_in_the_warm_up():
    (line,) = said("wsd", 1000, warmup_steps=5000, decay_share=0.9)
    assert "leaps from 0.02 to 1 of optimizer.lr at step 101" in line


def test_a_fall_behind_the_end():
    (line,) = said("multistep", 100, at=(0.5, 1.0))
    assert "its fall from 0.32 to 0.1 of optimizer.lr would come behind the last of 100 steps" in line
    assert said("wsd", 100, decay_share=0.0)
    assert said("constant", 100) == []
