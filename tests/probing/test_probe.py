"""Probes: splits and intervals by their definitions, features of padded batches, the two protocols, the command."""

import json
import math
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from llmlab.commands import probe, report
from llmlab.config.compose import compose
from llmlab.config.layout import resolve
from llmlab.config.spec import PartSpec
from llmlab.data import brown
from llmlab.data.labelled_sets import PACKAGES, records
from llmlab.errors import UserError
from llmlab.model.build import build_model
from llmlab.probing import features, finetune, frozen, scores, texts
from llmlab.probing import run as probing
from llmlab.runs import probes

TINY = ("model.dim=16", "model.n_layers=2", "model.n_heads=2", "model.vocab_size=32", "model.max_positions=12")
LENGTHS = (5, 9, 3, 12, 1, 7, 8, 2)


def build(*overrides):
    return build_model(resolve(compose([*overrides, *TINY])), 1).eval()


def read(lengths=LENGTHS, opened=False):
    ids = [np.random.default_rng(i).integers(1, 32, n) for i, n in enumerate(lengths)]
    return texts.Read(ids, [np.zeros_like(i) for i in ids], 0, opened)


def test_split_is_stratified_and_follows_from_the_seed():
    classes = np.repeat([0, 1, 2, 3], [40, 21, 2, 10])
    part, again, other = (scores.split(classes, 0.25, seed) for seed in (1, 1, 2))
    assert sorted([*part.train, *part.test]) == list(range(len(classes)))
    assert np.array_equal(part.test, again.test) and not np.array_equal(part.test, other.test)
    held = np.bincount(classes[part.test], minlength=4)
    assert np.abs(held - 0.25 * np.bincount(classes)).max() <= 1 and len(part.test) == round(len(classes) * 0.25)
    assert set(classes[scores.split(classes, 0.99, 1).train]) == {0, 1, 2, 3}


def test_interval_is_that_of_nadeau_and_bengio():
    part = scores.Split(np.arange(30), np.arange(10))
    values = [0.5, 0.6, 0.7]
    mean, half = scores.interval(values, part)
    # t(2, 0.975) = 4.3027 from any table; s = 0.1.
    assert math.isclose(mean, 0.6) and math.isclose(half, 4.302653 * 0.1 * math.sqrt(1 / 3 + 10 / 30), rel_tol=1e-6)
    assert scores.interval([0.4], part) == (0.4, None)
    assert math.isclose(scores.difference(values, [0.4, 0.5, 0.6], part).mean, 0.1)


@pytest.mark.parametrize(("model", "opened", "pools"), [("gpt2", False, ["mean", "last"]), ("bert", True, ["mean", "first"]),
                                                        ("t5", True, ["mean"])])  # fmt: skip
def test_features_are_those_of_each_text_alone(model, opened, pools):
    model, found = build(f"model={model}"), read(opened=opened)
    assert features.pools_of(model, found) == pools
    got = features.features(model, found, pools, segments=0, start=0, batch_size=3, tick=lambda d, t: None)
    for i, ids in enumerate(found.ids):
        both = model.spec.topology == "encoder_decoder"
        one = torch.from_numpy(ids)[None]
        with torch.no_grad():
            out = model({"source_ids": one, "ids": one[:, :1] * 0} if both else {"ids": one}, heads={})
        hidden = (out.source if both else out.hidden)[0].numpy()
        for pool, want in {"mean": hidden.mean(0), "first": hidden[0], "last": hidden[-1]}.items():
            if pool in pools:
                np.testing.assert_allclose(got[pool][i], want, atol=1e-5)


def test_static_embeddings_are_probed_by_their_table():
    model, found = build("objective=skipgram"), read()
    assert features.pools_of(model, found) == ["embedding"]
    got = features.features(model, found, ["embedding"], segments=0, start=0, batch_size=3, tick=lambda d, t: None)
    table = model.stacks["main"].embedding.weight.detach().numpy()
    np.testing.assert_allclose(got["embedding"][1], table[found.ids[1]].mean(0), atol=1e-6)


def test_a_mask_that_needs_more_than_the_text_sees_all_of_it():
    spec = build("model=bert").spec
    prefix = replace(spec.stacks[0], mask=PartSpec("mask", "prefix"), sizes=spec.stacks[0].sizes.but(sees_all=False))
    assert features.seeing(replace(spec, stacks=(prefix,))) == spec == features.seeing(spec)


@pytest.mark.parametrize("model", ["gpt2", pytest.param("bert", marks=pytest.mark.slow)])
def test_fine_tuning_learns_a_word_and_leaves_the_model_alone(model):
    model, rng = build(f"model={model}", "model.dropout=0", "model.attention.dropout=0"), np.random.default_rng(0)
    classes = np.arange(24) % 2
    ids = [rng.integers(5, 32, 6) for _ in classes]
    for text, c in zip(ids, classes, strict=True):
        text[[0, -1]] = 1 + c
    before = {k: v.clone() for k, v in model.state_dict().items()}
    task = finetune.Task(texts.Read(ids, [np.zeros(6, int)] * 24, 0, True), classes, 2, 0)
    part, state, ticks = scores.split(classes, 0.25, 1), torch.get_rng_state(), []
    recipe = finetune.Recipe(epochs=4, batch_size=6, rates=(1e-6, 1e-2))
    found = [finetune.accuracy(model, task, part, 1, recipe, lambda d, t: ticks.append((d, t)))]
    assert found == [1.0] and frozen.majority(classes, part) == 0.5
    assert ticks[-1][0] == ticks[-1][1] and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())


def test_logistic_regression_chooses_its_strength_without_the_test_texts():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    classes = np.arange(60) % 3
    part = scores.split(classes, 0.25, 1)
    # A useful feature of tiny scale beside noise: found by standardising.
    x = rng.normal(size=(60, 4))
    x[:, 0] = 1e-4 * (classes + 0.1 * rng.normal(size=60))
    assert frozen.accuracy(x, classes, part) > 0.9
    noise = rng.normal(size=(60, 4))
    mixed = noise.copy()
    mixed[part.test, 0] = 100 * classes[part.test]  # a hint that only the test texts have
    assert frozen.accuracy(mixed, classes, part) < 0.7
    ids = [np.array([c, 5, 5, 6]) for c in classes]
    bag = frozen.bag_of_tokens(ids, part)
    assert frozen.accuracy(bag, classes, part) == 1.0 and np.allclose(np.sqrt(bag.multiply(bag).sum(1)), 1)


@pytest.mark.filterwarnings("error")
def test_texts_too_few_for_a_cross_validation_are_no_error():
    pytest.importorskip("sklearn")
    x = np.array([[-1.0], [-1.1], [1.0], [1.1]])
    for share, n in ((0.5, 2), (0.25, 3)):
        part = scores.split(np.array([0, 0, 1, 1]), share, 1)
        assert len(part.train) == n and frozen.accuracy(x, np.array([0, 0, 1, 1]), part) in (0.0, 1.0)


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def test_sets_of_texts(tmp_path):
    rows = [{"text": f"t{i}", "topic": "ab"[i % 2]} for i in range(6)]
    found = texts.open_set(write(tmp_path / "a.jsonl", [*rows, rows[0]]), {"label": "topic"})
    assert list(found.numbers) == [0, 1, 0, 1, 0, 1] and found.repeated == 1 and found.name == "a.jsonl"
    for bad, said in (
        (rows[:1] + rows[2:3], "data=.*b.jsonl: all records have the label 'a'; a classifier needs two or more"),
        ([{"text": " ", "topic": "a"}], "there is no record with a text in it"),
        ([{"text": f"t{i}", "topic": i // 2} for i in range(20_002)], "10,001 different labels; at most 10,000"),
        (rows[:3], "only one text has the label 'b'"),
    ):
        with pytest.raises(UserError, match=said):
            texts.open_set(write(tmp_path / "b.jsonl", bad), {"label": "topic"})
    with pytest.raises(UserError, match=r"data=brwn: there is no such file.*brown"):
        texts.open_set("brwn", {})
    with pytest.raises(UserError, match="llmlab fetch brown brings it"):
        records("brown")


def test_brown_is_its_package_without_tags(tmp_path):
    archive = tmp_path / "brown.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, text in {
            "cats.txt": "cb01 news\nca01 lore\n",
            "ca01": "\n\tA/at dog/nn and/or/cc ./.\n",
            "cb01": "No/at",
        }.items():
            (tmp_path / name).write_text(text)
            tar.add(tmp_path / name, f"package/{name}")
    rows = [json.loads(line) for line in brown.convert(archive)]
    assert rows == [{"text": "No", "label": "news"}, {"text": "A dog and/or .", "label": "lore"}]


def test_what_is_left_out_of_a_file_is_said(tmp_path):
    rows = [{"text": f"t{i}", "votes": [i % 2, i % 2 if i else 1]} for i in range(6)]
    found = texts.open_set(
        write(
            tmp_path / "a.jsonl",
            [*rows, {"text": " ", "label": 1}, {"text": "x", "votes": [None]}, {"text": "t2", "label": 1}],
        ),
        {},
    )
    assert len(found.records) == 6 and len(found.notes) == 3 and found.repeated == 1
    assert "1 texts are there again with another label: the first counts" in found.notes[2]
    assert "skipped 2: 1 records without text (a.jsonl:7), 1 records that nobody has voted on" in found.notes[0]
    assert "1 texts have a confidence below 1, or votes that differ" in found.notes[1]


@pytest.mark.slow  # it parses a tenth of the standard library
def test_docstrings_come_with_python():
    found = records("docstrings")
    assert {r["label"] for r in found} <= set(PACKAGES) and len(found) > 300


@pytest.mark.parametrize(("words", "said"), [
    ([], "run is missing"),
    (["run=a", "mode=frozn"], "mode=frozn: there is no such mode; did you mean frozen?"),
    (["run=a", "run=a"], "a is named twice"),
    (["run=a", "seeds=0"], "seeds=0 must be at least 1"),
    (["run=a", "test=1"], "test=1 must be more than 0"),
    (["run=a", "lr=0.1"], "lr= is for mode=finetune"),
    (["run=a", "mode=finetune", "lr=2"], "lr=2 must be"),
    (["run=a", "data.fields.lable=x"], "data.fields.lable: type data.fields.FIELD=KEY"),
    (["run=a", "dat=x"], "dat: there is no such key"),
])  # fmt: skip
def test_bad_words_are_one_line(words, said):
    with pytest.raises(UserError) as e:
        probe.main(words)
    assert said in str(e.value) and "\n" not in str(e.value)


@pytest.mark.slow  # a training
def test_a_run_is_probed_and_reported(corpus, tiny, tmp_path, monkeypatch, capsys):
    from llmlab.training.run import train

    monkeypatch.chdir(tmp_path)
    for seed in (1, 2):
        train(compose([*tiny, f"seed={seed}"]), tmp_path / "runs" / str(seed))
    rows = [{"text": f"the {'fox' if i % 2 else 'river'} runs", "label": i % 2} for i in range(2)]
    rows += [{"text": f"{'a ' * i}{'dog' if i % 2 else 'lazy'}", "label": i % 2} for i in range(1, 15)]
    words = [
        "run=runs/1",
        "run=runs/2",
        f"data={write(tmp_path / 'mine.jsonl', rows)}",
        "mode=finetune",
        "lr=1e-2",
        "epochs=1",
    ]
    capsys.readouterr()
    assert probe.main([*words, "seeds=2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [m["model"] for m in found["models"]] == ["runs/1", "runs/2"] and found["train"] + found["test"] == 16
    fields = json.loads((tmp_path / "runs/1/run.json").read_text())
    assert found["models"][0]["flops"] == fields["flops_per_token"] * fields["tokens_seen"]
    one, two = (m["features"]["last"] for m in found["models"])
    assert math.isclose(two["difference"]["mean"], two["mean"] - one["mean"])
    (kept,) = probes.read(tmp_path / "runs/1")
    assert kept["accuracies"] == one["accuracies"] and kept["mode"] == "finetune"
    assert probe.main([*words, "seeds=2"]) == 0 and len(probes.read(tmp_path / "runs/1")) == 1
    assert "most frequent class" in capsys.readouterr().out
    # One that was killed, and an earlier checkpoint of it.
    last = probing.of_run("runs/1")
    assert last.note is None and last.flops == found["models"][0]["flops"]
    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "runs/1", killed)
    for name, value in {"status": "running", "steps": 0, "tokens_seen": 0}.items():
        fields[name] = value
    (killed / "run.json").write_text(json.dumps(fields))
    first, *_ = sorted((killed / "checkpoints").glob("step=*"))
    died, early = probing.of_run(str(killed)), probing.of_run(str(first))
    assert "has not been completed (died): it is probed as it was at step" in died.note and died.run == killed
    assert math.isclose(died.flops, last.flops)
    assert "not the run's last: the result is not kept" in early.note and early.run is None
    assert early.flops < died.flops
    assert probing.runs_of("runs") == ["runs/1", "runs/2"] and probing.runs_of("runs/1") == ["runs/1"]
    assert probing.runs_of(str(first)) == [str(first)]
    shutil.move(killed, tmp_path / "other" / "killed")
    with pytest.raises(UserError, match="none of the 1 runs below it is complete"):
        probing.runs_of("other")
    assert report.main(["runs", "out=.", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["probes"] == {"mine.jsonl, finetune last": [one["mean"], two["mean"]]}
    assert "probe mine.jsonl, finetune last" in (tmp_path / "report.md").read_text()
