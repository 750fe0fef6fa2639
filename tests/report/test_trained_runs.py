"""A report over runs that were really trained: what they write is what the report reads."""

import json
import os
import random

import pytest

from llmlab.commands import report
from llmlab.config.compose import compose

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.mark.slow  # two trainings, and Lightning's import
def test_two_trained_runs(tmp_path, monkeypatch, capsys):
    from llmlab.training.run import train

    monkeypatch.setenv("LLMLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    chance = random.Random(0)
    (tmp_path / "text.txt").write_text(
        " ".join(chance.choice(["fox", "dog", "runs", "the", "far"]) for _ in range(2000))
    )
    common = ["data=files", f"data.path={tmp_path / 'text.txt'}", "tokenizer=char", "data.seq_len=16", "model.dim=16",
              "model.n_layers=1", "model.n_heads=2", "train.batch_size=8", "train.validation_batches=2",
              "train.validate_every=3", "train.sample=false", "train.log_every=2", "budget.steps=12"]  # fmt: skip
    records = {}
    for attention in ("mha", "mla"):
        records[attention] = train(compose([*common, f"attention={attention}"]), tmp_path / "runs" / attention)
    capsys.readouterr()
    assert report.main(["runs", "out=.", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [r["name"] for r in found["rows"]] == ["attention=mha", "attention=mla"]
    for row, run, trained in zip(found["rows"], found["runs"], records.values(), strict=True):
        assert row["mean"] == run["value"] == trained["metrics"]["val_loss"]
        assert row["active"] == trained["parameters"]["active"]
        assert row["flops"] == trained["flops_per_token"] * 12 * 8 * 16 and row["tokens"] == 12 * 8 * 16
        assert row["tokens_per_second"] == trained["tokens_per_second"]
        assert row["curve"]["tokens"] == [3 * 128, 6 * 128, 9 * 128, 12 * 128]
        assert row["curve"]["mean"][-1] == row["mean"]
    assert found["rows"][1]["verdict"] == "one seed"
    assert any(n.startswith("Equal tokens is not equal compute: against attention=mha") for n in found["notices"])
    assert found["keys"] == {"attention": {"attention=mha": "mha", "attention=mla": "mla"}}
