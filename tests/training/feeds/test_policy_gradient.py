"""Runs of GRPO and its kin: companions, resuming, cutting, ranks, and rewards that teach nothing."""

import json

import pytest
import ranks
import torch
import yaml
from small_runs import numbers, run

from llmlab.commands import eval_reward
from llmlab.commands.eval import evaluate
from llmlab.config.compose import compose
from llmlab.errors import UserError
from llmlab.runs import checkpoint

STEPS = 6
SHORT = [f"budget.steps={STEPS}", "train.checkpoint_every=1", "train.keep=9", "train.log_every=1", "alignment.epochs=2"]
# A mean over tokens, a KL in the reward for which the reference is asked at each rollout, and returns of tokens.
TOKENS = ["alignment=reinforce_pp", "alignment.samples=2", "alignment.beta=0.1", "train.batch_size=8"]
SHOWN = ("loss", "grad_norm", "reward", "reward_std", "kl", "entropy", "clip_fraction", "truncated", "answer_length")


@pytest.fixture(scope="module")
def whole(task, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, run(folder, *task, *SHORT, *TOKENS, "train.micro_batch_size=2")


def last(folder):
    return checkpoint.read(folder / f"checkpoints/{checkpoint.name(STEPS)}")[0]


@pytest.mark.slow
def test_a_run_goes_on_from_the_middle_of_a_rollout_with_its_reference(whole, at, tmp_path):
    folder, record = whole
    assert evaluate(str(folder))["loss"] == pytest.approx(record["metrics"]["val_loss"])
    greedy = eval_reward.Arguments(run=str(folder), reference=str(folder), samples=1, temperature=0)
    score, *_ = eval_reward.scored(greedy, ["reward=contains"])
    assert score["reward"]["mean"] == pytest.approx(record["metrics"]["val_reward"]) and "kl" not in score
    copy = at(folder, 3, tmp_path / "copy")
    run(copy, f"resume={copy}")
    assert numbers(copy) == numbers(folder)
    assert all(torch.equal(t, last(folder)[name]) for name, t in last(copy).items())


def test_micro_batches_change_nothing(whole, task, column, tmp_path):
    folder, _ = whole
    run(tmp_path / "run", *task, *SHORT, *TOKENS)
    for name in SHOWN:
        assert column(tmp_path / "run", name) == pytest.approx(column(folder, name), abs=1e-5), name
    kl = column(folder, "kl")
    assert kl[0] == pytest.approx(0, abs=1e-6) and kl[-1] > 1e-5  # the model has left what it began as


def test_nothing_is_learnt_from_equal_rewards(task, column, tmp_path):
    """No step: AdamW's weight decay alone would change the weights."""
    nothing = [
        "alignment=grpo",
        "alignment.kl=none",
        "alignment.beta=0",
        "reward.text=@@@",
        "optimizer.weight_decay=0.5",
    ]
    run(tmp_path / "run", *task, *SHORT, *nothing)
    weights, _ = checkpoint.read(tmp_path / f"run/checkpoints/{checkpoint.name(STEPS)}")
    first, _ = checkpoint.read(tmp_path / f"run/checkpoints/{checkpoint.name(1)}")
    assert all(torch.equal(t, weights[name]) for name, t in first.items())
    assert column(tmp_path / "run", "flat_groups") == [1.0] * STEPS
    assert column(tmp_path / "run", "grad_norm") == [0.0] * STEPS


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["objective=reinforce", "reward=exact"],
            "objective=reinforce: reinforce is of another slot: alignment=reinforce",
        ),
        (["alignment=objective"], "there is no such alignment"),
        (
            ["alignment=grpo", "reward=exact", "models.reference=[size=nano]"],
            "leave it out, and it is this model as it",
        ),
        (["alignment=dapo", "reward=exact", "models.reference=[]"], "alignment=dapo works with no other model"),
    ],
)
def test_what_is_refused(words, said):
    with pytest.raises(UserError, match=said):
        compose(words)


@pytest.mark.slow  # two ranks
def test_two_ranks_learn_what_one_does(whole, task, column, tmp_path):
    alone, _ = whole
    where = ["strategy=ddp", "trainer.devices=2", "train.micro_batch_size=2", f"hydra.run.dir={tmp_path / 'two'}"]
    task = [w for w in task if not w.startswith("train.batch_size")]  # a key may be given once only
    ranks.train(tmp_path / "logs", [*task, *SHORT, *TOKENS, *where])
    for name in (*SHOWN, "val_loss"):
        assert column(tmp_path / "two", name) == pytest.approx(column(alone, name), abs=1e-5), name


@pytest.mark.slow  # two runs
def test_a_function_of_ones_own_judges_and_is_found_again_from_another_folder(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "def score(answer, record):\n    return len(answer) / int(record['answer'] != '@')\n"
    )
    task = [w for w in task if not w.startswith("reward=")]
    both = ["reward=sum", "reward.of=[function,code]", "reward.options=[{path: own.py},{field: answer}]"]
    record = run(tmp_path / "run", *task, *SHORT, "alignment=rloo", *both, "budget.steps=1")
    cfg = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert cfg["reward"]["options"][0]["path"] == str(tmp_path / "own.py") and record["metrics"]["val_reward"] > 0
    assert {"code_timed_out", "code_crashed", "code_invalid"} <= {k.removeprefix("val_") for k in record["metrics"]}
    (tmp_path / "own.py").write_text("def score(answer, record):\n    return 1 / 0\n")
    with pytest.raises(UserError, match="own.py:2: score raised ZeroDivisionError: division by zero, of the answer"):
        run(
            tmp_path / "bad", *task, *SHORT, "alignment=rloo", "reward=function", "reward.path=own.py", "budget.steps=1"
        )


def test_a_run_whose_kl_passes_a_bound_ends_and_keeps_what_was_good(whole, task, column, tmp_path):
    kl = column(whole[0], "kl")
    bound = (max(kl) + min(kl)) / 2
    step = next(i for i, each in enumerate(kl, 1) if each > bound)
    where = tmp_path / "run"
    with pytest.raises(
        UserError, match=rf"step {step}: kl is .*, above train.stop_kl=.*; the last good checkpoint is"
    ) as e:
        run(where, *task, *SHORT, *TOKENS, "train.micro_batch_size=2", f"train.stop_kl={bound:.9f}")
    assert "\n" not in str(e.value)
    assert checkpoint.step_of(checkpoint.all_of(where / "checkpoints")[-1]) == step - 1
    assert json.loads((where / "run.json").read_text())["status"] == "failed"
