"""REINFORCE on a task that can be seen through: answer with the digit of the prompt."""

import json
from itertools import product

import pytest
import ranks
import torch
import yaml
from small_runs import numbers, run

from llmlab.commands.eval import evaluate
from llmlab.errors import UserError
from llmlab.files import sha256
from llmlab.report.write import write
from llmlab.runs import answers, checkpoint

STEPS = 10
# Three epochs: the checkpoints of steps 4 and 8 are in the middle of a rollout's, that of step 6 is between two.
SHORT = [f"budget.steps={STEPS}", "train.checkpoint_every=2", "train.keep=9", "train.log_every=1"]
SHORT += ["alignment=reinforce", "alignment.epochs=3"]


@pytest.fixture(scope="module")
def whole(task, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, run(folder, *task, *SHORT, "train.micro_batch_size=4")


@pytest.mark.parametrize("step", [4, 6, 8])
def test_a_run_goes_on_from_the_middle_of_a_rollout_to_the_same_bits(whole, at, tmp_path, step):
    folder, _ = whole
    copy = at(folder, step, tmp_path / "copy")
    held = checkpoint.read(copy / f"checkpoints/{checkpoint.name(step)}")[1]["llmlab"].get("feed")
    assert (held is None) == (step == 6) and (held is None or held["number"] == step // 3)
    run(copy, f"resume={copy}")
    assert numbers(copy) == numbers(folder)
    assert (copy / answers.NAME).read_bytes() == (folder / answers.NAME).read_bytes()
    (ours, _), (theirs, _) = (checkpoint.read(f / f"checkpoints/{checkpoint.name(STEPS)}") for f in (copy, folder))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_of_before_there_were_methods_goes_on_and_is_measured(whole, at, tmp_path):
    folder, record = whole
    copy = at(folder, 4, tmp_path / "copy")
    cfg = yaml.safe_load((copy / "config.yaml").read_text())
    method = cfg.pop("alignment")
    old = {"_part_": "reinforce", **{k: method[k] for k in ("samples", "max_new", "temperature", "batches", "epochs")}}
    assert method["kl"] == "none"

    def written_then():
        (copy / "config.yaml").write_text(yaml.safe_dump({**cfg, "objective": old}))
        record = json.loads((copy / "run.json").read_text())
        record["files"]["config.yaml"] = sha256(copy / "config.yaml")
        (copy / "run.json").write_text(json.dumps(record))

    written_then()
    run(copy, f"resume={copy}")
    assert numbers(copy) == numbers(folder)
    written_then()
    assert evaluate(str(copy))["loss"] == pytest.approx(record["metrics"]["val_loss"])


def test_micro_batches_change_nothing(whole, task, column, tmp_path):
    folder, _ = whole
    run(tmp_path / "run", *task, *SHORT, "train.micro_batch_size=16")
    for name in ("loss", "grad_norm", "reward", "answer_length", "val_loss"):
        assert column(tmp_path / "run", name) == pytest.approx(column(folder, name), abs=2e-6), name


def test_what_a_run_says_of_itself(whole, column):
    folder, record = whole
    metrics = record["metrics"]
    assert metrics["val_reward"] == -metrics["val_loss"] and 0 <= metrics["val_reward"] <= 1
    assert 1 <= metrics["val_answer_length"] <= 2
    assert not [name for name in metrics if "perplexity" in name or "bits" in name]
    assert record["parts"]["reward"] == "contains"
    assert len(column(folder, "reward")) == STEPS and len(set(column(folder, "reward"))) > 1
    assert all(column(folder, "grad_norm"))


def test_answers_are_kept_with_their_rewards_and_shown(whole, tmp_path, monkeypatch):
    folder, _ = whole
    first, kept = ([a for a in answers.read(folder) if a["step"] == step] for step in (STEPS // 2, STEPS))
    assert [a["prompt"] for a in first] == [a["prompt"] for a in kept] and len(kept) == answers.SHOWN
    for a in kept:
        assert a["reward"] == (a["prompt"][-2] in a["answer"])
        assert (a["tokens"], a["ended"]) in {(1, True), (2, True), (2, False)}
        assert len(a["answer"]) == a["tokens"] - a["ended"]
    monkeypatch.chdir(tmp_path)
    plain = write([folder], out=tmp_path, show=False)
    (shown,) = plain["answers"]
    assert shown["answers"] == kept[:4] and shown["run"] == "run"
    for name in ("report.html", "report.md"):
        text = (tmp_path / name).read_text()
        assert "Answers" in text and all(a["prompt"] in text for a in kept[:4])


@pytest.mark.slow  # 170 steps: 6 s
def test_it_learns_in_seconds(task, column, tmp_path):
    """From what chance gives to all of the held-out prompts, which none of training's equals. Seeds 1 to 4 end at 1.0."""
    # 1,200 of them: as no step is made where all answers to each prompt are worth the same, a model that has learnt a few by
    # heart stays as it is, half wrong on others. Five digits, as one that is never drawn is never learnt.
    letters = ["".join(of) for n in (1, 2, 3) for of in product("abcdef", repeat=n)]
    prompts = [(before, str(digit)) for before in letters for digit in range(5)]
    # In an order of its own, so that what is held out is of all kinds; 997 is prime.
    mixed = [prompts[i * 997 % len(prompts)] for i in range(1200)]
    lines = [json.dumps({"prompt": f"{before}{digit}=", "answer": digit}) for before, digit in mixed]
    (tmp_path / "digits.jsonl").write_text("\n".join(lines))
    how = [
        f"data.path={tmp_path / 'digits.jsonl'}",
        "alignment=reinforce",
        "alignment.samples=8",
        "alignment.advantage=group",
        "budget.steps=170",
        "train.batch_size=64",
        "optimizer.lr=7e-3",
        "schedule=constant",
        "schedule.warmup_share=0.1",
        "train.log_every=5",
        "seed=1",
    ]
    record = run(tmp_path / "run", *task, *how)
    rewards = column(tmp_path / "run", "reward")
    assert rewards[0] < 0.25 and sum(rewards[-4:]) / 4 > 0.95
    assert record["metrics"]["val_reward"] > 0.9


def test_what_is_refused_before_anything_is_written(task, tmp_path):
    for words, said in [
        (
            ["alignment.max_new=8"],
            "data.seq_len must be at least 10 for prompts .* alignment.max_new=8 tokens, but is 8",
        ),
        (["alignment.samples=3"], "alignment.samples=3 must divide the 16 answers of a rollout"),
        (["reward.field=label"], "needs 'label' in each record, but one has prompt, answer"),
    ]:
        with pytest.raises(UserError, match=said):
            run(tmp_path / "run", *task, "alignment=reinforce", *words)
        assert not (tmp_path / "run").exists()


@pytest.mark.slow  # two ranks
def test_two_ranks_learn_what_one_does_and_resume_to_the_same_bytes(whole, task, column, tmp_path):
    alone, _ = whole
    two, again = tmp_path / "two", tmp_path / "again"
    where = ["strategy=ddp", "trainer.devices=2", "train.micro_batch_size=4"]
    ranks.train(
        tmp_path / "logs",
        [*task, *SHORT, *where, f"hydra.run.dir={two}"],
        ["back", str(two), str(again)],
        [f"resume={again}"],
    )
    for name in ("loss", "grad_norm", "reward", "answer_length", "val_loss"):
        assert column(two, name) == pytest.approx(column(alone, name), abs=2e-6), name
    assert numbers(again) == numbers(two)
    (ours, _), (theirs, _) = (checkpoint.read(f / f"checkpoints/{checkpoint.name(STEPS)}") for f in (again, two))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
