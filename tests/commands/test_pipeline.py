"""experiment=rlhf: its stages as runs, kept and gone on with, and the table at the end."""

import json
import shutil

import pytest

from llmlab.commands import cli, pipeline
from llmlab.config import stages
from llmlab.errors import UserError
from llmlab.pipeline import plan as plans
from llmlab.pipeline import ranking, states
from llmlab.runs import checkpoint

STAGES = ("base", "sft", "ranked", "judge", "dpo", "ppo", "grpo")
TRAINED = [s for s in STAGES if s != "ranked"]
SIZES = [f"{s}.{w}" for s in TRAINED for w in ("model.dim=16", "model.n_layers=1", "model.n_heads=2", "budget.steps=4")]
SHORT = [f"{s}.train.{w}" for s in TRAINED for w in ("batch_size=16", "validation_batches=1", "checkpoint_every=2")]
TINY = [
    *SIZES, *SHORT, "base.budget.steps=20", "sft.budget.steps=10", "ppo.alignment.epochs=1", "trainer.accelerator=cpu",
    "ranked.samples=4",
    "ranked.prompts=60", "ranked.reward=length", "ranked.reward.least=9", "table.prompts=8",
]  # fmt: skip


@pytest.fixture(scope="module")
def done(corpus, tmp_path_factory):
    """(the command, its folder, the stages that each call of it trained) of a pipeline that ended in the middle of ppo."""
    folder = tmp_path_factory.mktemp("rlhf") / "out"
    command = ["train", "experiment=rlhf", *TINY, f"hydra.run.dir={folder}"]
    calls = []

    def here(words):
        calls.append(words)
        code = cli.run(["train", *words])
        if "alignment=ppo" in words:  # as if it had been killed behind its first checkpoint
            for at in checkpoint.all_of(folder / "ppo/checkpoints"):
                if checkpoint.step_of(at) > 2:
                    shutil.rmtree(at)
            about = json.loads((folder / "ppo/run.json").read_text())
            (folder / "ppo/run.json").write_text(json.dumps({**about, "status": "interrupted", "steps": 2}))
            return 137
        return code

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "process", here)
        assert cli.run(command) == 130
        first, calls = calls, []
        patch.setattr(pipeline, "process", lambda words: calls.append(words) or cli.run(["train", *words]))
        assert cli.run(command) == 0
    return command, folder, first, calls


@pytest.mark.slow  # seven runs in this process: half a minute
def test_the_stages_are_runs_that_are_kept_and_gone_on_with(done, capsys):
    command, folder, first, second = done
    assert len(first) == 5 and second[0][0] == f'resume="{folder}/ppo"' and len(second) == 2
    for name in TRAINED:
        assert json.loads((folder / name / "run.json").read_text())["status"] == "completed"
    assert json.loads((folder / "ppo/run.json").read_text())["models"]["reward"]["source"] == str(folder / "judge")
    table = json.loads((folder / "table.json").read_text())
    assert [r["name"] for r in table["rows"]] == ["base", "sft", "best of 8", "dpo", "ppo", "grpo"]
    rows = {r["name"]: r for r in table["rows"]}
    assert rows["sft"]["win_rate"]["mean"] == 0.5 and rows["sft"]["kl"]["mean"] == 0 and "kl" in rows["base"]
    for name in ("base", "dpo", "ppo", "grpo"):  # each number is that of its run alone
        scored = json.loads((folder / name / "scores/exact-held_out.json").read_text())
        assert scored["reward"] == rows[name]["reward"] and scored["prompts"] == 8
    assert "| best of 8 |" in (folder / "table.md").read_text() and "<td" in (folder / "report.html").read_text()
    capsys.readouterr()
    assert cli.run(command) == 0  # nothing is left to do: no process is started, and the table is the same
    assert capsys.readouterr().out.count("done before") == 7
    assert json.loads((folder / "table.json").read_text()) == table
    prompts = folder.parent / "long.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": p, "answer": "2"}) + "\n" for p in ("1+1=", "1+" * 300 + "1=")))
    words = [f"run={folder}/sft", "reward.field=answer", "reward=exact", f"data={prompts}", "samples=1", "max_new=2"]
    assert cli.run(["eval", *words]) == 0 and "cut  1 of 2 records cut at" in capsys.readouterr().out
    assert (folder / "sft/scores/exact-long.json").is_file()
    assert cli.run([*command, "sft.optimizer.lr=1"]) == 1
    assert "has stages of other words (sft, ranked, judge, dpo, ppo, grpo)" in capsys.readouterr().err


def test_words_are_of_a_stage_and_stages_of_what_they_begin_with(tmp_path, capsys):
    file = stages.file_of(["experiment=rlhf"])
    plan = plans.plan(file, ["seed=3", "sft.optimizer.lr=1e-4", "table.samples=2", f"hydra.run.dir={tmp_path}"])
    assert list(plan.stages) == list(STAGES)
    sft, ppo = plan.stages["sft"], plan.stages["ppo"]
    assert "optimizer.lr=1e-4" in sft.words and "optimizer.lr=2e-3" not in sft.words and "seed=3" in ppo.words
    assert f'models.reward="{tmp_path}/judge"' in ppo.words and ppo.begins_with == ("sft", "judge")
    assert "samples=2" in plan.table["words"] and plan.stages["ranked"].answers_of == "sft"
    other = plans.plan(file, ["seed=3", "sft.optimizer.lr=1e-4", "dpo.seed=4"])
    assert [n for n in STAGES if other.digests[n] != plan.digests[n]] == ["dpo"]  # wherever the folder is
    assert stages.file_of(["experiment=ppo"]) is None
    for words, said in (
        (["experiment=rlhf", "size=nano"], "size=nano: say of which stage, base.size=nano; the stages are base, sft"),
        (["-m", "experiment=rlhf"], "experiment=rlhf is several runs, of which -m is not"),
    ):
        assert cli.run(["train", *words]) == 1
        assert said in capsys.readouterr().err
    assert cli.run(["plan", "experiment=rlhf"]) == 1
    assert "llmlab train experiment=rlhf runs them" in capsys.readouterr().err


def test_words_that_a_later_stage_refuses_are_said_before_the_first_trains(tmp_path, capsys):
    folder = tmp_path / "it's, mine"
    wrong = ("sft.budget.stepz=2", "ppo.budget.steps=two", "ranked.reward=nope", "table.reward.feild=a")
    assert cli.run(["train", "experiment=rlhf", *wrong, f"hydra.run.dir={folder}"]) == 1
    lines = [w for w in capsys.readouterr().err.splitlines() if w]
    assert [w.split()[1] for w in lines] == ["sft:", "ranked:", "ppo:", "table:"], lines
    assert not folder.exists()


def test_a_stage_that_ends_while_it_is_waited_for_is_not_trained_again(tmp_path, monkeypatch, capsys):
    record = tmp_path / "base/run.json"

    def other(folder):  # the run of a pipeline that was killed ends
        if folder == tmp_path / "base":
            record.write_text(json.dumps({**json.loads(record.read_text()), "status": "completed"}))

    def train(plan, stage, how, config_dirs):
        raise UserError(f"{stage.name} would be trained")

    command = ["train", "experiment=rlhf", f"hydra.run.dir={tmp_path}"]
    monkeypatch.setattr(pipeline, "_train", train)
    assert cli.run(command) == 1 and "base would be trained" in capsys.readouterr().err
    record.parent.mkdir()
    record.write_text(json.dumps({"schema": 1, "status": "running"}))
    monkeypatch.setattr(states, "wait", other)
    assert cli.run(command) == 1 and "sft would be trained" in capsys.readouterr().err


@pytest.mark.parametrize(("code", "raised"), [(130, KeyboardInterrupt), (1, UserError)])
def test_a_stage_of_a_folder_that_was_moved_is_told_where_all_lies_now(code, raised, tmp_path, monkeypatch):
    plan = plans.plan(stages.file_of(["experiment=rlhf"]), [f"hydra.run.dir={tmp_path}"])
    (tmp_path / "ppo").mkdir()
    models = {
        role: {"trains": role == "critic", "weights": f"/before/{of}/checkpoints/step=00000002"}
        for role, of in (("reference", "sft"), ("critic", "judge"), ("reward", "judge"))
    }
    about = {"schema": 1, "status": "interrupted", "models": models, "data": {"path": "/before/data/prompts.jsonl"}}
    (tmp_path / "ppo/run.json").write_text(json.dumps(about))
    calls = []
    monkeypatch.setattr(pipeline, "process", lambda words: calls.append(words) or code)
    with pytest.raises(raised):
        pipeline._train(plan, plan.stages["ppo"], "resume", [])
    at = {"resume": "ppo", "data.path": "data/prompts.jsonl", "models.reference": "sft", "models.reward": "judge"}
    assert calls == [[f'{key}="{tmp_path}/{place}"' for key, place in at.items()]]


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("")
    assert cli.run(["train", "experiment=rlhf", f"hydra.run.dir={tmp_path}"]) == 1
    assert "has other files" in capsys.readouterr().err and [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_answers_are_ranked_once_each_and_prompts_without_a_better_one_are_left_out(tmp_path):
    answers = [
        {"answer": a, "reward": r} for a, r in [("4", 0.0), ("5", 1.0), ("4", 0.0), ("", 0.5), *[("7", 0.0)] * 4]
    ]
    assert list(ranking.lines(["2+3=", "1+1="], answers)) == [
        {"prompt": "2+3=", "answers": ["5", "4"], "scores": [1.0, 0.0]}
    ]
    (tmp_path / "asked.jsonl").write_text('{"prompt": "1+1="}\n')
    with pytest.raises(UserError, match="none can be ranked"):
        ranking.write(tmp_path / states.RANKED, tmp_path / "asked.jsonl", answers[4:])
