"""Whole runs through `train`, small."""

import csv
import functools
import json
import shutil
from collections import Counter

import hydra
import pytest
import torch
from small_runs import numbers, run

from llmlab.config import layout
from llmlab.config.compose import compose
from llmlab.errors import UserError
from llmlab.model.model import Model
from llmlab.runs import checkpoint, record
from llmlab.training import finish

FIELDS = [
    "schema",
    "status",
    "command",
    "overrides",
    "seed",
    "parts",
    "versions",
    "hardware",
    "data",
    "parameters",
    "flops_per_token",
    "tokens_seen",
    "steps",
    "wall_seconds",
    "tokens_per_second",
    "mfu",
    "peak_memory_bytes",
    "metrics",
]
EVERY = ["train.checkpoint_every=2", "train.validate_every=5", "train.log_every=3"]
HARD = ["train.micro_batch_size=2", "model.dropout=0.2", *EVERY]


def weights(folder, step):
    return checkpoint.read(folder / "checkpoints" / checkpoint.name(step))


def same(a, b):
    """Equal values in nested containers, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


CALLS = Counter()  # of what is counted while `whole` runs


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """A run that nothing interrupted, with accumulation, dropout and validation."""

    def counted(owner, name):
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def outer(*args, **kwargs):
            CALLS[name] += 1
            return inner(*args, **kwargs)

        patch.setattr(owner, name, outer)

    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        counted(hydra, "compose")
        counted(layout, "resolve")
        counted(Model, "__init__")
        patch.setattr(finish, "once_a_week", lambda: False)  # advice tries a model with another attention
        run(folder, *tiny, *HARD, "experiment_name=counted")  # words that no test before it has composed
    return folder


def test_a_run_composes_and_resolves_once_and_builds_its_model_for_counting_and_for_training(whole):
    # None of Hydra, where one that was asked before had the same choices.
    assert CALLS["compose"] <= 1 and {k: CALLS[k] for k in ("resolve", "__init__")} == {"resolve": 1, "__init__": 2}


def test_the_record_has_every_field_and_the_folder_every_file(whole):
    found = record.read(whole)
    assert found["status"] == "completed"
    assert set(FIELDS) <= set(found)
    assert found["steps"] == 12
    assert found["tokens_seen"] == 12 * 8 * 16
    assert found["metrics"]["val_bits_per_byte"] > 0
    assert found["data"]["tokens"] > 0
    assert 0 < found["mfu"] <= 1
    names = {p.name for p in whole.iterdir()}
    assert {"config.yaml", "model.json", "run.json", "metrics.csv", "timing.csv", "loss.png", "tokenizer.json"} <= names


def test_rows_of_metrics(whole):
    rows = list(csv.DictReader((whole / "metrics.csv").open()))
    assert [int(r["step"]) for r in rows if r["loss"]] == [1, 3, 6, 9, 12]
    assert [int(r["step"]) for r in rows if r["val_loss"]] == [5, 10, 12]
    assert all(int(r["tokens"]) == int(r["step"]) * 128 for r in rows)


def test_two_checkpoints_are_kept(whole):
    assert [checkpoint.step_of(p) for p in checkpoint.all_of(whole / "checkpoints")] == [10, 12]


def test_the_same_command_gives_the_same_bits(whole, tiny, tmp_path):
    run(tmp_path / "again", *tiny, *HARD)
    assert numbers(tmp_path / "again") == numbers(whole)
    assert same(weights(tmp_path / "again", 12), weights(whole, 12))


@pytest.mark.parametrize("stop", [1, 2, 5, 7])
def test_a_run_cut_short_goes_on_to_the_same_bits(stop, whole, tiny, tmp_path):
    folder = tmp_path / "cut"
    assert run(folder, *tiny, *HARD, f"trainer.max_steps={stop}")["steps"] == stop
    done = run(folder, f"resume={folder}", "trainer.max_steps=-1")
    assert done["steps"] == 12
    assert numbers(folder) == numbers(whole)
    ours, theirs = weights(folder, 12), weights(whole, 12)
    assert same(ours[0], theirs[0])
    assert same(ours[1]["optimizer_states"], theirs[1]["optimizer_states"])
    assert same(ours[1]["lr_schedulers"], theirs[1]["lr_schedulers"])


def test_optimizer_state_is_keyed_by_parameter_path(whole):
    model, state = weights(whole, 12)
    assert set(state["optimizer_states"][0]["state"]) == set(model)
    assert "stacks.main.embedding.table.weight" in model


def test_a_damaged_checkpoint_is_passed_over_and_named(whole, tiny, tmp_path, capsys):
    folder = tmp_path / "damaged"
    run(folder, *tiny, *HARD, "trainer.max_steps=8")
    file = folder / "checkpoints" / checkpoint.name(8) / checkpoint.WEIGHTS
    data = bytearray(file.read_bytes())
    data[-5] ^= 4
    file.write_bytes(data)
    run(folder, f"resume={folder}", "trainer.max_steps=-1")
    said = capsys.readouterr()
    assert "step=00000008 is not used" in said.err
    assert "from step 6" in said.out
    assert numbers(folder) == numbers(whole)
    assert same(weights(folder, 12)[0], weights(whole, 12)[0])


def test_a_complete_run_is_left_alone(whole, capsys):
    before = (whole / "run.json").read_bytes()
    run(whole, f"resume={whole}")
    assert "is complete" in capsys.readouterr().out
    assert (whole / "run.json").read_bytes() == before


def test_a_resumed_run_keeps_its_config(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "copy")
    with pytest.raises(UserError, match=r"seed=3.*keeps its own config"):
        run(tmp_path / "copy", f"resume={tmp_path / 'copy'}", "seed=3")


def test_a_folder_with_a_run_is_not_written_over(whole, tiny):
    with pytest.raises(UserError, match="holds a run already"):
        run(whole, *tiny)


@pytest.mark.slow
def test_two_runs_of_one_second_have_a_folder_each(tiny, tmp_path, monkeypatch):
    import datetime

    import hydra.core.utils

    from llmlab.commands.cli import run

    class Stopped(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr(hydra.core.utils, "datetime", Stopped)
    monkeypatch.chdir(tmp_path)
    for name in ("03-04-05-llama3", "03-04-05-llama3-2", "03-04-05-llama3-3"):
        assert run(["train", *tiny, "trainer.max_steps=1"]) == 0
        assert record.read(tmp_path / "runs" / "2026-01-02" / name)["status"] == "completed"
    assert len(list((tmp_path / "runs" / "2026-01-02").iterdir())) == 3


def test_init_from_takes_the_weights_only(whole, tiny, tmp_path):
    started = run(tmp_path / "new", *tiny, f"init_from={whole}", "optimizer.lr=1e-30", "trainer.max_steps=1")
    ours, theirs = weights(tmp_path / "new", 1)[0], weights(whole, 12)[0]
    assert all(torch.allclose(ours[n], theirs[n], rtol=0, atol=1e-20) for n in theirs)
    assert started["steps"] == 1
    with pytest.raises(UserError, match="do not fit this model"):
        run(tmp_path / "wide", *tiny, f"init_from={whole}", "model.dim=32")


def test_max_steps_leaves_the_schedule_alone(whole, tiny, tmp_path):
    run(tmp_path / "short", *tiny, *HARD, "trainer.max_steps=3")
    first = [next(csv.DictReader((f / "metrics.csv").open()))["lr"] for f in (whole, tmp_path / "short")]
    assert first[0] == first[1]


def test_a_loss_that_is_no_number_stops_the_run(tiny, tmp_path):
    folder = tmp_path / "nan"
    overrides = [*tiny, "optimizer.lr=1e18", "train.clip=null", "schedule.warmup_steps=4", "train.log_every=1"]
    with pytest.raises(UserError, match=r"step \d+: .*Try a lower optimizer.lr"):
        run(folder, *overrides, "train.checkpoint_every=1")
    found = json.loads((folder / "run.json").read_text())
    assert found["status"] == "failed"
    assert found["reason"].startswith("step ")
    for path in checkpoint.all_of(folder / "checkpoints"):
        assert all(bool(t.isfinite().all()) for t in checkpoint.read_weights(path).values())


def test_nothing_is_left_of_a_run_that_could_not_begin(tiny, tmp_path):
    folder = tmp_path / "day" / "time"
    folder.mkdir(parents=True)
    with pytest.raises(UserError):
        run(folder, *tiny, "train.batch_size=100000")
    assert not folder.exists()


def test_routers_hear_of_the_whole_step(tiny, tmp_path):
    """The bias of a sigmoid router moves once a step by its rate, by the load of all micro-batches."""
    moe = [
        *tiny,
        "moe=sigmoid",
        "moe.rate=0.5",
        "model.moe.n_experts=4",
        "model.moe.per_token=1",
        "model.moe.renormalise=false",
        "trainer.max_steps=1",
    ]
    biases = []
    for micro in (8, 2):
        run(tmp_path / str(micro), *moe, f"train.micro_batch_size={micro}")
        (bias,) = (t for n, t in weights(tmp_path / str(micro), 1)[0].items() if n.endswith("router.bias"))
        assert set(bias.abs().tolist()) <= {0.0, 0.5}
        assert bias.abs().sum() > 0
        biases.append(bias)
    assert torch.equal(*biases)


def test_minutes_become_tokens_once(tiny, tmp_path):
    others = [o for o in tiny if not o.startswith("budget.")]
    found = run(tmp_path / "run", *others, "budget.minutes=0.01", "trainer.max_steps=3")
    budget = json.loads((tmp_path / "run/run.json").read_text())["budget"]
    assert budget["unit"] == "minutes"
    assert budget["steps"] >= 3
    assert budget["tokens"] == budget["steps"] * 128
    run(tmp_path / "run", f"resume={tmp_path / 'run'}", "trainer.max_steps=4")
    assert json.loads((tmp_path / "run/run.json").read_text())["budget"] == budget
    assert found["steps"] == 3


@pytest.mark.slow
def test_half_precision_trains_and_keeps_its_weights_whole(tiny, tmp_path):
    found = run(tmp_path / "run", *tiny, "precision=bf16-mixed")
    assert found["metrics"]["loss"] < 5
    assert all(t.dtype == torch.float32 for t in weights(tmp_path / "run", 12)[0].values())


def test_a_run_that_breaks_off_anywhere_is_recorded_as_failed(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(finish, "sample", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "run", *tiny, "train.sample=true")
    found = record.read(tmp_path / "run")
    assert (found["status"], found["reason"]) == ("failed", "ZeroDivisionError: division by zero")


@pytest.mark.parametrize(("model", "want"), {"llama3": "mla", "deepseek_v3": "mha", "deberta_v3": "gqa"}.items())
def test_the_attention_to_try_next_is_one_that_the_model_can_have(model, want):
    """DeBERTa's position can't be scored by latents."""
    assert finish.another_attention(layout.resolve(compose([f"model={model}"]))) == want


@pytest.mark.slow
def test_a_time_limit_ends_a_run_at_a_saved_step(tiny, tmp_path):
    others = [o for o in tiny if not o.startswith("budget.")]
    long = ["budget.steps=1000000", "trainer.max_time='00:00:00:01'", "train.validate_every=1000000"]
    found = run(tmp_path / "run", *others, *long, "train.checkpoint_every=1000000")
    assert 0 < found["steps"] < 1_000_000
    assert checkpoint.step_of(checkpoint.all_of(tmp_path / "run/checkpoints")[-1]) == found["steps"]
    again = run(tmp_path / "run", f"resume={tmp_path / 'run'}", f"trainer.max_steps={found['steps'] + 2}")
    assert again["steps"] >= found["steps"]


def test_seconds_go_on_and_tables_without_them_too(whole, tiny, tmp_path):
    folder = tmp_path / "cut"
    run(folder, *tiny, *HARD, "trainer.max_steps=7")
    path, want = folder / "metrics.csv", numbers(whole)
    header, *lines = path.read_text().splitlines()
    shutil.copytree(folder, tmp_path / "old")
    *before, row, validation = lines  # the last is dropped: the whole run has none at step 7
    path.write_text("\n".join([header, *before, row.rpartition(",")[0] + ",1000.5", validation]) + "\n")
    run(folder, f"resume={folder}", "trainer.max_steps=-1")
    assert numbers(folder) == want
    assert all(float(r["seconds"]) > 1000.5 for r in csv.DictReader(path.open()) if int(r["step"]) > 7)

    old = tmp_path / "old/metrics.csv"  # of a run from before there was the column
    old.write_text("\n".join(line.rpartition(",")[0] for line in [header, *lines]) + "\n")
    run(tmp_path / "old", f"resume={tmp_path / 'old'}", "trainer.max_steps=-1")
    assert old.read_text().splitlines() == want


def test_a_resumed_run_validates_when_it_would_have(tiny, tmp_path):
    words = [o for o in tiny if not o.startswith("train.validation_batches")]
    done = run(tmp_path / "run", *words, "budget.steps=40", "trainer.max_steps=3")
    held_out = done["data"]["validation_tokens"]
    assert done["intervals"] == {"validate_every": 40, "checkpoint_every": 2}
    assert 2 * held_out / 3 > 0.1 * 40 * 128  # two validations would take more than a tenth
    fields = json.loads((tmp_path / "run/run.json").read_text())
    (tmp_path / "run/run.json").write_text(
        json.dumps({**fields, "intervals": {**fields["intervals"], "validate_every": 4}})
    )
    run(tmp_path / "run", f"resume={tmp_path / 'run'}", "trainer.max_steps=9")
    rows = csv.DictReader((tmp_path / "run/metrics.csv").open())
    assert [int(r["step"]) for r in rows if r["val_loss"]] == [4, 8, 9]


def test_a_run_of_before_data_bos_is_measured_as_it_was(whole, tmp_path):
    """Its documents have no bos: those of `tokenizer=char` have none anyway."""
    from llmlab.commands.eval import evaluate
    from llmlab.runs import folder

    old = shutil.copytree(whole, tmp_path / "old")
    text = (old / "config.yaml").read_text()
    assert "  bos: null\n" in text
    (old / "config.yaml").write_text(text.replace("  bos: null\n", ""))
    fields = json.loads((old / "run.json").read_text())
    (old / "run.json").write_text(
        json.dumps({k: v for k, v in fields.items() if k != "files"})
    )  # nor hashes of its files
    assert folder.load(old)[0].data.bos is False
    assert evaluate(str(old)) == evaluate(str(whole))


def test_bits_per_byte_of_a_tokenizer_that_drops_text(tiny, tmp_path):
    """Lower case, accents and spaces are not in its tokens, but they are bytes of the text that was measured."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    from llmlab.commands.generate import encode_prompt
    from llmlab.runs.folder import load_model

    text = "The Cat sat on   the Mat, and the naïve Dog saw it.\n" * 240
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer, inner.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    inner.train_from_iterator(
        [text],
        trainers.WordPieceTrainer(vocab_size=60, special_tokens=["[UNK]", "[SEP]", "[CLS]"], show_progress=False),
    )
    inner.post_processor = processors.BertProcessing(("[SEP]", 1), ("[CLS]", 2))
    inner.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    own = [o for o in tiny if not o.startswith(("data", "tokenizer"))]
    data = ["data=files", f"data.path={tmp_path / 'a.txt'}", "data.split=position", "data.seq_len=16"]
    tokenizer = ["tokenizer=file", f"tokenizer.path={tmp_path / 'tokenizer.json'}"]
    metrics = run(tmp_path / "run", *own, *data, *tokenizer, "budget.steps=2", "train.validation_batches=2")["metrics"]
    held_out = text[int(len(text) * 0.9) :]
    found = inner.encode(held_out, add_special_tokens=False)
    n = 2 * 8 * 16  # targets: the tokens from the second on
    assert n < len(found) - 1
    read = held_out[found.offsets[0][1] : found.offsets[n][1]]
    bits = metrics["val_loss"] * n / torch.log(torch.tensor(2.0)).item() / len(read.encode())
    assert metrics["val_bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    assert "kneser_ney_bigram_bits_per_byte" not in metrics  # of all of the held-out text
    # Its documents began as the template begins a text, and so does a prompt.
    assert any("each document begins with [CLS]" in note for note in record.read(tmp_path / "run")["notes"])
    tokenizer = load_model(tmp_path / "run")[1]
    assert encode_prompt(tokenizer, "the cat", 0, 1, False) == [
        2,
        *inner.encode("the cat", add_special_tokens=False).ids,
    ]
