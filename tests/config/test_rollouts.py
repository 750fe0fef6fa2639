"""What can't be where a model is trained on answers of its own, said in a line each."""

import pytest

from llmlab.config import data_keys
from llmlab.config.compose import compose
from llmlab.errors import UserError

ACTS = ("alignment=reinforce", "reward=exact")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("reward=exact",), "reward=exact: objective=clm reads no prompts, so nothing would change; leave it out"),
        ((*ACTS, "model.dropout=0.1"), "model.dropout=0.1: alignment=reinforce learns from the probabilities"),
        ((*ACTS, "model.attention.dropout=0.1"), "model.attention.dropout=0.1: "),
        (
            (*ACTS, "strategy=fsdp", "trainer.devices=2"),
            "strategy=fsdp: .* whole model on each device; choose one of single",
        ),
        ((*ACTS, "placement.compile=true"), "placement.compile=true: "),
        ((*ACTS, "budget.minutes=1"), "budget.minutes=1: .* give budget.steps or budget.tokens"),
        ((*ACTS, "reward.fild=x"), "reward.fild"),
    ],
)
def test_is_refused(typed, said):
    with pytest.raises(UserError, match=said):
        compose(typed)


def test_a_run_needs_a_reward_and_a_model_does_not():
    composed = compose(["alignment=reinforce", "data=files", "data.path=."])
    with pytest.raises(UserError, match=r"reward: alignment=reinforce needs one; reward=NAME \(code, contains, "):
        data_keys.require_source(composed)


def test_is_composed():
    cfg = compose([*ACTS, "reward.field=label", "alignment.epochs=3"]).cfg
    assert (cfg.reward.field, cfg.alignment.epochs) == ("label", 3)
    assert compose([]).cfg.reward is None
