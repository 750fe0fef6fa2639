"""When runs validate and save, against counting it out."""

import json
import random
from types import SimpleNamespace

import pytest

from llmlab.errors import UserError
from llmlab.runs import record as records
from llmlab.training.intervals import FORWARD_SHARE, MOST, SHARE, Intervals, due, trained, validations
from llmlab.training.progress import Remaining


def plan(held_out, step_tokens, horizon, record=None, validate_every=None, checkpoint_every=None):
    typed = SimpleNamespace(validate_every=validate_every, checkpoint_every=checkpoint_every)
    return Intervals.from_config(typed, held_out, step_tokens, horizon, record or {})


def counted(every, horizon):
    return sum(step % every == 0 or step == horizon for step in range(1, horizon + 1))


def test_validations_cost_at_most_a_tenth_of_training_and_the_last_is_always_there():
    chance = random.Random(0)
    for _ in range(500):
        horizon, step_tokens = chance.randint(1, 3000), 2 ** chance.randint(4, 12)
        held_out = int(10 ** chance.uniform(0, 6))
        found = plan(held_out, step_tokens, horizon)
        n = counted(found.validate_every, horizon)
        share = n * held_out * FORWARD_SHARE / (horizon * step_tokens)
        assert 1 <= n <= MOST
        assert share <= SHARE or n == 1
        more = (validations(horizon * step_tokens, held_out) + 1) * held_out * FORWARD_SHARE
        assert more > SHARE * horizon * step_tokens or validations(horizon * step_tokens, held_out) == MOST
        assert 1 <= counted(found.checkpoint_every, horizon) <= 20


def test_the_default_run_and_a_small_one():
    assert plan(78_293, 2048, 1172) == (131, 59, 78_293)  # nine times, 9.8 %
    assert plan(78_293, 2048, 15).validate_every == 15  # one alone costs more


def test_what_is_typed_is_taken_as_typed_and_a_resumed_run_keeps_its_plan():
    assert plan(78_293, 2048, 15, validate_every=2, checkpoint_every=7)[:2] == (2, 7)
    assert plan(78_293, 2048, 15, {"intervals": {"validate_every": 4, "checkpoint_every": 3}})[:2] == (4, 3)
    assert plan(78_293, 2048, 15, {"steps": 3})[:2] == (2, 1)  # a record from before there was a plan
    with pytest.raises(UserError, match="train.validate_every=0 must be at least 1"):
        plan(1, 1, 1, validate_every=0)


def test_what_is_left_is_counted_out():
    for last in range(1, 30):
        for every in (1, 2, 3, 7, 29, 40):
            for step in range(last + 1):
                want = sum(s % every == 0 or s == last for s in range(step + 1, last + 1))
                assert due(step, last, every) == want, (step, last, every)


@pytest.mark.parametrize("held_out", [0, 1000, 30_000, 10**7])
def test_minutes_are_shared_out_between_training_and_validations(held_out):
    total = 1e6
    found = trained(total, held_out, lambda tokens: validations(tokens, held_out))
    spent = found + validations(found, held_out) * held_out * FORWARD_SHARE
    if held_out == 10**7:
        assert found == total / 2  # the rest is for the one that there must be
    else:
        assert spent <= total
        assert spent > 0.98 * total


def test_time_left_counts_validations_and_checkpoints():
    left = Remaining(100, 10, Intervals(40, 50, 300))
    assert left.seconds(10, None) is None
    assert left.seconds(10, 5.0) == pytest.approx(90 * 10 / 5 + 3 * 300 * FORWARD_SHARE / 5)
    left.validated(2.0)
    left.validated(4.0)
    left.saved(0.5)
    assert left.seconds(40, 5.0) == pytest.approx(60 * 10 / 5 + 2 * 3.0 + 2 * 0.5)
    assert left.seconds(100, 5.0) == 0
    assert Remaining(100, 10, Intervals(40, 50, 0)).seconds(0, 10.0) == pytest.approx(100)  # no validation at all


@pytest.mark.parametrize("kept", [None, [], {"validate_every": 4}, {"validate_every": "x", "checkpoint_every": 3}])
def test_what_a_record_keeps_of_them_has_a_shape(kept, tmp_path):
    fields = {"status": "completed", "intervals": kept}
    (tmp_path / records.NAME).write_text(json.dumps(fields))
    with pytest.raises(UserError, match="run.json: intervals"):
        records.read(tmp_path)
