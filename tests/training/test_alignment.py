"""Alignment from one run to the next: conversations, then preferences with the model as it begins for a reference."""

import csv
import itertools
import json
import math
import re
import statistics

import pytest
import ranks
import torch
from small_runs import numbers, run

from llmlab import registry
from llmlab.commands import cli
from llmlab.commands.eval import evaluate
from llmlab.commands.export import export
from llmlab.errors import UserError
from llmlab.model import adapters
from llmlab.runs import checkpoint, folder
from llmlab.training import module

pytestmark = pytest.mark.slow
OFTEN = ["train.log_every=1", "train.validate_every=4", "train.checkpoint_every=4", "train.keep=9", "budget.steps=8"]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def words(tiny):
    kept = [w for w in tiny if not w.startswith(("data", "budget", "tokenizer"))]
    return [
        *kept,
        *OFTEN,
        "data=files",
        "data.seq_len=64",
        "tokenizer=bpe",
        "tokenizer.vocab_size=320",
        "trainer.accelerator=cpu",
    ]


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    pairs = [(a, b) for a in range(8) for b in range(8)]
    at = tmp_path_factory.mktemp("talks")
    sums = [{"prompt": f"{a}+{b}", "completion": str(a + b)} for a, b in pairs]
    ranked = [{"prompt": f"{a}+{b}", "chosen": str(a + b), "rejected": str(a + b + 1 + a % 2)} for a, b in pairs]
    return jsonl(at / "talks.jsonl", sums), jsonl(at / "ranked.jsonl", ranked)


@pytest.fixture(scope="module")
def sft(words, talks, tmp_path_factory):
    path = tmp_path_factory.mktemp("sft") / "run"
    run(path, *words, "alignment=sft", f"data.path={talks[0]}")
    return path


@pytest.fixture(scope="module")
def dpo(words, talks, sft, tmp_path_factory):
    path = tmp_path_factory.mktemp("dpo") / "run"
    run(path, *words, "alignment=dpo", f"data.path={talks[1]}", f"init_from={sft}")
    return path


@pytest.fixture(scope="module")
def judge(words, talks, sft, tmp_path_factory):
    path = tmp_path_factory.mktemp("judge") / "run"
    run(path, *words, "alignment=reward", f"data.path={talks[1]}", f"init_from={sft}")
    return path


def losses(path):
    with (path / "metrics.csv").open() as f:
        return [row for row in csv.DictReader(f) if row.get("loss")]


def test_the_template_is_a_choice_beside_the_tokenizer_of_init_from(sft, talks, words, tmp_path, capsys):
    """And what its longer texts cut away is said of both parts."""
    long = json.dumps({"prompt": "1+" * 300, "completion": "3"}) + "\n"
    (tmp_path / "mixed.jsonl").write_text(long * 2 + talks[0].read_text() + long)
    where = [f"data.path={tmp_path / 'mixed.jsonl'}", "data.split=position", "data.validation=0.3"]
    words = ["alignment=sft", *where, f"init_from={sft}", "tokenizer.template=alpaca", *words]
    with pytest.raises(UserError, match=r"data.seq_len=64 cuts away the answers of all \d+ conversations"):
        run(tmp_path / "none", *words)
    assert not (tmp_path / "none").exists()
    run(tmp_path / "run", *words, "trainer.max_steps=1", "data.seq_len=160")
    said = capsys.readouterr().out
    assert (tmp_path / "run/tokenizer.json").read_bytes() == (sft / "tokenizer.json").read_bytes()
    assert "### Response:" in (tmp_path / "run/chat_template.jinja").read_text()
    assert "training records: 2 conversations are left out: their answers lie behind data.seq_len=160" in said
    assert "validation records: 1 conversation is left out: its answers lie behind data.seq_len=160" in said


def test_a_run_on_conversations_is_asked_by_its_template(sft, tmp_path):
    found = losses(sft)
    assert float(found[-1]["loss"]) < float(found[0]["loss"])
    transformers = pytest.importorskip("transformers")
    export(sft, tmp_path / "hf", format="hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1+1"}], add_generation_prompt=True, tokenize=False
    )
    assert asked == "<|im_start|>user\n1+1<|im_end|>\n<|im_start|>assistant\n"
    model, own = folder.load_model(sft)
    ids = own.encode_marked(asked)
    assert tokenizer(asked, add_special_tokens=False).input_ids == ids
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    with torch.no_grad():
        wanted = theirs(torch.tensor([ids])).logits
        found = model({"ids": torch.tensor([ids])}, heads={"tokens": None}).heads["tokens"]
    torch.testing.assert_close(found[..., : wanted.shape[-1]], wanted, atol=1e-5, rtol=1e-5)


def test_dpo_begins_at_ln_2_from_a_copy_that_is_recorded(dpo, sft):
    first = losses(dpo)[0]
    assert float(first["loss"]) == pytest.approx(math.log(2), abs=1e-6) and float(first["margin"]) == 0
    record = json.loads((dpo / "run.json").read_text())
    start = folder.start_of(str(sft))
    assert record["models"]["reference"]["sha256"] == checkpoint.weights_sha256(start)
    assert record["models"]["reference"]["copies"] is True and not record["models"]["reference"]["trains"]
    assert evaluate(run=str(dpo))["loss"] == pytest.approx(record["metrics"]["val_loss"], abs=1e-6)


def test_a_reward_model_of_conversations_judges_and_criticises_the_model_that_it_began_with(
    words, talks, sft, judge, tmp_path
):
    """As docs/alignment.md has it: conversations, a reward model, PPO."""
    both = ["reward=model", f"models.reward={judge}", f"models.critic={judge}"]
    short = ["alignment=ppo", "alignment.max_new=4", "train.batch_size=8", "train.sample=false"]
    kept = [w for w in words if w.partition("=")[0] not in ("train.batch_size", "train.sample")]
    record = run(tmp_path / "tuned", *kept, *short, *both, f"data.path={talks[0]}", f"init_from={sft}")
    assert (
        record["status"] == "completed" and record["models"]["critic"]["source"] == record["models"]["reward"]["source"]
    )
    with (tmp_path / "tuned/metrics.csv").open() as file:
        kl = [float(row["kl"]) for row in csv.DictReader(file) if row["kl"]]
    assert kl[0] == pytest.approx(0, abs=1e-5)  # it begins as the reference does


@pytest.mark.parametrize("begins", [True, False], ids=["from a run", "from first values"])
def test_a_run_that_goes_on_has_the_reference_that_it_began_with(words, talks, sft, dpo, begins, tmp_path):
    whole = dpo
    if not begins:
        whole = tmp_path / "whole"
        run(whole, *words, "alignment=dpo", f"data.path={talks[1]}")
        assert float(losses(whole)[0]["loss"]) == pytest.approx(math.log(2), abs=1e-6)
    half = tmp_path / "half"
    more = [f"init_from={sft}"] if begins else []
    run(half, *words, "alignment=dpo", f"data.path={talks[1]}", *more, "trainer.max_steps=4")
    run(half, f"resume={half}", "trainer.max_steps=-1")
    assert numbers(half) == numbers(whole)


def test_the_reference_beside_an_adapter_has_the_trained_models_own_weights(words, talks, sft, tmp_path, monkeypatch):
    words = [*words, "alignment=dpo", "adapter=lora", f"data.path={talks[1]}", f"init_from={sft}"]
    whole, half, seen = tmp_path / "whole", tmp_path / "half", []
    share = module.share_frozen

    def watched(copy, trained, companion):
        share(copy, trained, companion)
        there = {id(p) for p in trained.parameters()}
        seen.append({adapters.MARK in path for path, p in copy.named_parameters() if id(p) not in there})

    monkeypatch.setattr(module, "share_frozen", watched)
    run(whole, *words)
    assert seen == [{True}]
    # A copy of all of it, and a run that goes on, compute the same to the last digit.
    monkeypatch.setattr(module, "share_frozen", lambda *_: None)
    run(half, *words, "trainer.max_steps=4")
    monkeypatch.setattr(module, "share_frozen", share)
    run(half, f"resume={half}", "trainer.max_steps=-1")
    assert numbers(half) == numbers(whole)


def test_data_show_marks_what_is_learnt(words, talks, capsys):
    def shown(*more, path=talks[0]):
        last = {o.partition("=")[0]: o for o in [*words, f"data.path={path}", *more]}
        assert cli.run(["data", "show", *last.values()]) == 0
        return capsys.readouterr().out

    out = shown("alignment=sft", "rows=3")
    assert out.count("== sample") == 3
    assert re.search(
        r"⟨<\|im_start\|>⟩assistant↵\n⟦(\d+)⟨<\|im_end\|>⟩⟨<\|eos\|>⟩⟧\n-- document 2\n⟨<\|im_start\|>⟩user↵", out
    )
    # The model reads the sum and is never to write it.
    assert not re.search(r"⟦[^⟧]*\+", out)
    ranked = shown("alignment=dpo", "rows=1", path=talks[1])
    asked, right, wrong = re.search(r"(\d\+\d)⟦(\d+)⟨.*\1⟦(\d+)⟨<\|eos\|>⟩⟧", ranked, re.DOTALL).groups()
    assert eval(asked) == int(right) != int(wrong)
    assert re.findall("-- (.*):", ranked) == ["answer 1", "answer 2"]
    prompts = shown("alignment=reinforce", "reward=exact", "reward.field=completion", "alignment.max_new=4", "rows=2")
    assert len(re.findall(r'== prompt \d: \d+ tokens, {"completion": "\d+"}\n\d\+\d\n', prompts)) == 2


def test_ten_conversations_and_one_command_make_a_run_that_goes_on(words, talks, tmp_path, capsys):
    ten = tmp_path / "ten.jsonl"
    ten.write_text("".join(talks[0].read_text().splitlines(keepends=True)[:10]))
    typed = [*(w for w in words if not w.startswith("train.batch_size")), "alignment=sft", f"data.path={ten}"]
    found = run(tmp_path / "run", *typed)
    size = found["batch"]["sequences"]
    (note,) = [n for n in found["notes"] if n.startswith(f"train.batch_size={size} in place of 16")]
    assert 1 <= size < 16 and f"note: {note}" in capsys.readouterr().out
    assert cli.run(["data", "show", *typed]) == 0
    assert f"note: {note}" in capsys.readouterr().out
    # What it became is in the run's config, so that it goes on with it.
    ranks.back(tmp_path / "run", tmp_path / "again")
    assert run(tmp_path / "again", f"resume={tmp_path / 'again'}")["batch"] == found["batch"]
    assert numbers(tmp_path / "again") == numbers(tmp_path / "run")
    with pytest.raises(UserError, match=r"train\.batch_size=16 is more than the \d samples"):
        run(tmp_path / "typed", *typed, "train.batch_size=16")
    assert not (tmp_path / "typed").exists()


def test_words_that_would_make_an_untaught_reference_are_refused(words, talks, tmp_path):
    with pytest.raises(
        UserError, match=r"^models\.reference: \[size=nano\] would be a model that has learnt nothing: leave it"
    ):
        run(tmp_path / "run", *words, "alignment=dpo", f"data.path={talks[1]}", "models.reference=[size=nano]")
    with pytest.raises(
        UserError, match=r"^objective=clm: alignment=dpo takes the objective's place; leave one of them out"
    ):
        run(tmp_path / "run", *words, "alignment=dpo", f"data.path={talks[1]}", "objective=clm")


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Prompts that no run has read."""
    rows = [{"prompt": f"{a}+{b}", "answer": str(a + b)} for a, b in [(8, 1), (1, 8), (9, 0), (0, 9), (8, 8)]]
    return jsonl(tmp_path_factory.mktemp("asked") / "asked.jsonl", rows)


@pytest.fixture(scope="module")
def scored(dpo, sft, judge, asked, capsys_of_module):
    """dpo by a rule, beside sft: (what is printed as JSON, the answers)."""
    words = [
        f"run={dpo}",
        f"reference={sft}",
        f"data={asked}",
        "reward=length",
        "reward.most=3",
        "samples=6",
        "max_new=8",
    ]
    found = capsys_of_module([*words, "best_of=2", f"judge={judge}", "seed=3"])
    return words, found, [json.loads(line) for line in (dpo / "scores/length-asked.jsonl").open(newline="\n")]


@pytest.fixture(scope="module")
def capsys_of_module():
    """What a command of `llmlab eval` prints, read as JSON."""
    import contextlib
    import io

    def evaluated(words):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            assert cli.run(["eval", *words, "--json"]) == 0
        return json.loads(out.getvalue())

    return evaluated


def test_eval_by_a_reward_is_what_its_answers_say(scored, capsys_of_module):
    words, found, rows = scored
    assert (found["prompts"], found["answers"], len(rows)) == (5, 30, 30)
    assert "<|im_start|>user" in rows[0]["prompt"] and all(len(r["ids"]) <= 8 for r in rows)
    # By hand: the reward, the choice of two of six by the judge, the pairs.
    for r in rows:
        assert r["reward"] == registry.load("reward", "length", {"most": 3})().score([{}], [r["answer"]])[0]
    assert found["reward"]["mean"] == pytest.approx(statistics.mean(r["reward"] for r in rows))
    assert found["kl"]["mean"] == pytest.approx(statistics.mean(r["kl"] for r in rows)) and found["kl"]["mean"] > 0
    best = []
    for first in range(0, 30, 6):
        for one, other in itertools.combinations(rows[first : first + 6], 2):
            top = max(one["score"], other["score"])
            best.append(statistics.mean(r["reward"] for r in (one, other) if r["score"] == top))
    assert found["best_of"]["reward"]["mean"] == pytest.approx(statistics.mean(best))
    again = capsys_of_module([*words, "seed=3", "best_of=2", "batch_size=7"])
    assert again["reward"] == found["reward"] and again["kl"]["mean"] == pytest.approx(found["kl"]["mean"], abs=1e-6)


def test_the_kl_of_an_answer_is_that_of_its_tokens_under_both_models(scored, dpo, sft):
    _, _, rows = scored
    (one, tokenizer), (other, _) = folder.load_model(dpo), folder.load_model(sft)
    row = max(rows, key=lambda r: r["kl"])
    tokenizer.inner.encode_special_tokens = False
    ids = [*tokenizer.inner.encode(row["prompt"]).ids, *row["ids"]]
    with torch.no_grad():
        p, q = (
            m({"ids": torch.tensor([ids])}, heads={"tokens": None}).heads["tokens"][0].log_softmax(-1)
            for m in (one, other)
        )
    each = (p.exp() * (p - q)).sum(-1)[len(ids) - len(row["ids"]) - 1 : -1]
    assert row["kl"] == pytest.approx(each.sum().item(), abs=1e-4)


def test_a_run_is_not_far_from_itself(dpo, asked, capsys_of_module):
    found = capsys_of_module(
        [f"run={dpo}", f"reference={dpo}", f"data={asked}", "reward=length", "reward.most=3", "samples=4", "best_of=1"]
    )
    assert found["kl"] == {"mean": 0, "low": 0, "high": 0} and found["win_rate"]["mean"] == 0.5
    assert (
        found["best_of"]["reward"]["mean"] == pytest.approx(found["reward"]["mean"])
        and not found["best_of"]["kl_at_most"]
    )


def test_eval_by_a_reward_says_in_a_line_what_it_cannot(dpo, sft, judge, asked, capsys):
    rule = ["reward=exact", f"data={asked}"]
    for words, said in (
        ([f"run={sft}", "reward=exact"], "was trained on conversations and has no prompts of its own; name them"),
        ([f"run={judge}", *rule], "alignment=reward has no head that writes tokens"),
        ([f"run={dpo}", *rule, "best_of=4", "samples=2"], "samples=2 is fewer than best_of=4"),
        ([f"run={dpo}", *rule, f"judge={judge}"], "say of how many, best_of=N"),
        ([f"run={dpo}", *rule, "best_of=2", f"judge={sft}"], "has no scalar head"),
        ([f"run={dpo}", *rule, "reward.field=right"], "needs 'right' in each record"),
        ([f"run={dpo}", *rule, "best=2"], "there is no such key"),
    ):
        assert cli.run(["eval", *words]) == 1
        said_by = capsys.readouterr().err.strip().splitlines()
        assert said in said_by[-1] and len(said_by) == 1
