"""Alignment from one run to the next: conversations, then preferences with the model as it begins for a reference."""

import csv
import json
import math
import re

import pytest
import torch
from small_runs import numbers, run

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
    words, talks, sft, tmp_path
):
    """As docs/alignment.md has it: conversations, a reward model, PPO."""
    run(tmp_path / "judge", *words, "alignment=reward", f"data.path={talks[1]}", f"init_from={sft}")
    both = ["reward=model", f"models.reward={tmp_path / 'judge'}", f"models.critic={tmp_path / 'judge'}"]
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


def test_words_that_would_make_an_untaught_reference_are_refused(words, talks, tmp_path):
    with pytest.raises(
        UserError, match=r"^models\.reference: \[size=nano\] would be a model that has learnt nothing: leave it"
    ):
        run(tmp_path / "run", *words, "alignment=dpo", f"data.path={talks[1]}", "models.reference=[size=nano]")
    with pytest.raises(
        UserError, match=r"^objective=clm: alignment=dpo takes the objective's place; leave one of them out"
    ):
        run(tmp_path / "run", *words, "alignment=dpo", f"data.path={talks[1]}", "objective=clm")
