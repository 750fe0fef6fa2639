"""Runs of methods that learn from all answers to a prompt together, and of one that has no reward but a teacher."""

import pytest
import torch
from small_runs import numbers, run

from llmlab.commands.eval import evaluate
from llmlab.errors import UserError
from llmlab.runs import checkpoint

STEPS = 4
SHORT = [f"budget.steps={STEPS}", "train.checkpoint_every=1", "train.keep=9", "train.log_every=1", "alignment.epochs=2"]
METHODS = {
    "online_dpo": ["alignment=online_dpo", "alignment.labels=bradley_terry"],
    "rejection": ["alignment=rejection", "alignment.samples=3", "alignment.ended=false"],
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in METHODS if name != "online_dpo"]


@pytest.fixture(scope="module")
def words(task):
    return [*(w for w in task if not w.startswith("train.batch_size")), *SHORT, "train.batch_size=8"]


def same(folder, other):
    (ours, _), (theirs, _) = (checkpoint.read(f / f"checkpoints/{checkpoint.name(STEPS)}") for f in (folder, other))
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("name", ["online_dpo", *SLOW])
def test_a_run_learns_shows_and_goes_on(name, words, at, column, tmp_path):
    folder = tmp_path / "run"
    record = run(folder, *words, *METHODS[name], "train.micro_batch_size=4")
    assert record["metrics"]["val_loss"] == -record["metrics"]["val_reward"]
    assert all(column(folder, "grad_norm")) and len(set(column(folder, "loss"))) == STEPS
    if name == "online_dpo":
        assert column(folder, "loss")[0] == pytest.approx(0.6931, abs=1e-4) and column(folder, "kl")[0] == 0
    assert evaluate(str(folder))["loss"] == pytest.approx(record["metrics"]["val_loss"])
    copy = at(folder, 3, tmp_path / "copy")  # in the middle of a rollout's epochs
    run(copy, f"resume={copy}")
    assert numbers(copy) == numbers(folder) and same(copy, folder)


@pytest.mark.slow  # three runs
def test_a_teacher_corrects_the_models_own_answers_and_no_reward_is_needed(words, column, tmp_path):
    words = [w for w in words if not w.startswith("reward")]
    run(tmp_path / "teacher", *words, "reward=contains", "alignment=reinforce", "alignment.samples=2")
    how = [*words, "alignment=distill", f"models.teacher={tmp_path / 'teacher'}"]
    record = run(tmp_path / "run", *how, "optimizer.lr=1e-2", "seed=1")
    loss = column(tmp_path / "run", "loss")
    assert 0 < loss[-1] < loss[0] and record["metrics"]["val_loss"] > 0 and "val_reward" not in record["metrics"]
    assert evaluate(str(tmp_path / "run"))["loss"] == pytest.approx(record["metrics"]["val_loss"], abs=1e-5)
    run(tmp_path / "cut", *how, "optimizer.lr=1e-2", "seed=1", "train.micro_batch_size=2")
    assert column(tmp_path / "cut", "loss") == pytest.approx(loss, abs=1e-5)
    with pytest.raises(UserError, match="reward=contains: alignment=distill learns from no reward; leave it out"):
        run(tmp_path / "no", *how, "reward=contains")
