"""Runs of PPO: a critic that trains, a reference that does not, and what a checkpoint in the middle of an epoch holds."""

import subprocess
import sys
import time

import pytest
import ranks
import torch
from small_runs import numbers, run

from llmlab.runs import checkpoint, record
from tests import warm

STEPS = 6
SHORT = [f"budget.steps={STEPS}", "train.checkpoint_every=1", "train.keep=9", "train.log_every=1", "alignment=ppo"]
SHORT += [
    "alignment.epochs=2",
    "alignment.batches=2",
    "alignment.target=0.01",
    "alignment.no_end=0.5",
    "train.batch_size=8",
]
SHOWN = ("loss", "policy", "value", "grad_norm", "reward", "kl", "coefficient", "explained_variance", "entropy")


@pytest.fixture(scope="module")
def whole(task, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, run(folder, *task, *SHORT, "train.micro_batch_size=2")


def weights(folder, role="model"):
    path = folder / f"checkpoints/{checkpoint.name(STEPS)}"
    return checkpoint.read_weights(path) if role == "model" else checkpoint.read_weights(path, role)


def test_the_critic_trains_and_is_kept_and_beta_adapts(whole, column):
    folder, _ = whole
    first = checkpoint.read_weights(folder / f"checkpoints/{checkpoint.name(1)}", "critic")
    assert any(not torch.equal(t, weights(folder, "critic")[name]) for name, t in first.items())
    assert not (folder / "models/reference").exists()
    coefficients = column(folder, "coefficient")
    assert coefficients[:4] == [pytest.approx(0.05)] * 4 and coefficients[4] == pytest.approx(0.05 * 0.98)


@pytest.mark.parametrize("step", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_a_run_goes_on_from_the_middle_of_an_epoch_or_between_two_rollouts(whole, at, tmp_path, step):
    folder, _ = whole
    copy = at(folder, step, tmp_path / "copy")
    run(copy, f"resume={copy}")
    assert numbers(copy) == numbers(folder)
    for role in ("model", "critic"):
        assert all(torch.equal(t, weights(folder, role)[name]) for name, t in weights(copy, role).items())


@pytest.mark.slow  # a process of its own
def test_killed_in_the_middle_of_an_epoch_it_goes_on_to_the_same_numbers(whole, task, tmp_path):
    folder, killed = whole[0], tmp_path / "killed"
    words = list({w.partition("=")[0]: w for w in [*task, *SHORT, "train.micro_batch_size=2"]}.values())
    command = [sys.executable, "-m", "llmlab", "train", *words, f"hydra.run.dir={killed}"]
    process = warm.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not (found := checkpoint.all_of(killed / "checkpoints") if killed.exists() else []):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert 0 < checkpoint.step_of(found[-1]) < 4  # two epochs of two steps
    run(killed, f"resume={killed}")
    assert record.read(killed)["resumed"] == 1 and numbers(killed) == numbers(folder)


@pytest.mark.slow  # a run
def test_micro_batches_change_nothing(whole, task, column, tmp_path):
    folder, _ = whole
    run(tmp_path / "run", *task, *SHORT)
    for name in SHOWN:
        assert column(tmp_path / "run", name) == pytest.approx(column(folder, name), abs=1e-5), name


@pytest.mark.slow  # a run
def test_the_critic_may_be_a_head_on_the_policy(task, tmp_path):
    record = run(tmp_path / "run", *task, *SHORT, "alignment.critic=shared")
    assert record["status"] == "completed" and "heads.value.out.weight" in weights(tmp_path / "run")


@pytest.mark.slow  # two ranks
def test_two_ranks_learn_what_one_does(whole, task, column, tmp_path):
    alone, _ = whole
    where = ["strategy=ddp", "trainer.devices=2", "train.micro_batch_size=2", f"hydra.run.dir={tmp_path / 'two'}"]
    task = [w for w in task if not w.startswith("train.batch_size")]  # a key may be given once only
    ranks.train(tmp_path / "logs", [*task, *SHORT, *where])
    for name in (*SHOWN, "val_loss"):
        assert column(tmp_path / "two", name) == pytest.approx(column(alone, name), abs=1e-5), name
