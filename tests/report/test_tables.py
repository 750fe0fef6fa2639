"""Runs that have little to do with each other: what is compared with what, and how much is said about it."""

import json
import warnings

import pytest

from llmlab.report import table
from llmlab.report.write import write

GPT2 = {"model.family": "gpt2", "norm": {"_part_": "layernorm"}, "model.bias": True, "model.positions": 64}
MLM = {"objective": {"_part_": "mlm", "rate": 0.15}}


@pytest.fixture
def day(runs, tmp_path):
    """A day's runs, each typed by itself: three families and a part under one objective, two under another, one text of
    its own, one that was interrupted."""
    typed = {
        "gpt2": (3.0, GPT2, ["model=gpt2"], {}),
        "bert": (1.0, GPT2 | MLM, ["model=gpt2", "objective=mlm"], {}),
        "mlm": (1.1, MLM, ["objective=mlm"], {}),
        "own": (0.5, {"data.path": "mine"}, ["data=files", "data.path=mine"], {"data__fingerprint": "e" * 64}),
        "span": (0.6, {"objective": {"_part_": "span"}}, ["objective=span", "model=llama3"], {}),
        "default": (2.5, {}, [], {"began": "2026-01-02T00:00:00+00:00"}),
        "mla": (2.4, {"attention": runs.PART["mla"]}, ["attention=mla", "trainer.max_steps=-1"], {}),
        "ended": (None, MLM | {"train.batch_size": 4}, ["objective=mlm", "train.batch_size=4"], {"status": "interrupted"}),
    }  # fmt: skip
    for name, (loss, changes, overrides, more) in typed.items():
        runs.make(tmp_path / "day" / name, loss, changes=changes, overrides=tuple(overrides), **more)
    return tmp_path / "day"


def test_what_can_be_compared_is_in_one_table(day, built):
    report = built(day)
    default = "model=llama3"
    assert [[r.name for r in t.rows] for t in report.tables] == [
        ["model=gpt2", default, f"{default}, attention=mla, trainer.max_steps=-1"],
        ["model=gpt2, objective=mlm", f"{default}, objective=mlm", f"{default}, objective=mlm, train.batch_size=4"],
        [f"{default}, data=files, data.path=mine", f"{default}, objective=span"],
    ]
    assert [t.baseline for t in report.tables] == ["model=gpt2", "model=gpt2, objective=mlm", None]
    assert [[r.verdict for r in t.rows] for t in report.tables] == [
        ["baseline", "one seed", "one seed"],
        ["baseline", "one seed", "no complete run"],
        ["not comparable", "not comparable"],
    ]
    assert "Not comparable with model=gpt2, for objective=mlm has another loss than clm." in report.tables[1].notices
    assert report.tables[2].notices == [
        f"Not comparable with model=gpt2, for the text is another one: {default}, data=files, data.path=mine.",
        f"Not comparable with model=gpt2, for objective=span has another loss than clm: {default}, objective=span.",
    ]
    (sentence,) = table.sentences(report.tables[1])
    assert sentence[1].startswith(f"{default}, objective=mlm differs from model=gpt2, objective=mlm by +0.1000")
    assert built(day, asked="objective=mlm,model=llama3").baseline == f"{default}, objective=mlm"


def test_a_day_of_runs_fits_on_two_screens(day, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    write([day], out=tmp_path / "out")
    assert len(capsys.readouterr().out.splitlines()) < 60
    text = (tmp_path / "out" / "report.md").read_text()
    assert len(text) < 6000
    end = text[text.index("## The keys that differ") :]
    assert "<details>" in end and end.rstrip().endswith("</details>") and "model.positions" in end
    assert "<details" in (tmp_path / "out" / "report.html").read_text()
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [len(t["variants"]) for t in found["tables"]] == [3, 3, 2] and len(found["rows"]) == 8


def test_each_table_is_corrected_by_itself(runs, built, tmp_path):
    """What is compared elsewhere makes no interval wider: as if there were no other table."""
    losses = {s: 2.0 + s / 10 for s in (1, 2, 3)}
    for name, parts in (("clm", {}), ("mlm", MLM)):
        for attention, shift in (("mha", 0.0), ("mla", 0.05), ("gqa", 0.02)):
            for seed, loss in losses.items():
                changes = {"attention": runs.PART[attention], **parts}
                runs.make(tmp_path / name / f"{attention}{seed}", loss + shift * seed, seed=seed, changes=changes)
    both, one = built(tmp_path), built(tmp_path / "clm")
    assert len(both.tables) == 2 and [len(t.rows) for t in both.tables] == [3, 3]
    assert [r.comparison for r in both.tables[0].rows] == [r.comparison for r in one.rows]
    assert [r.comparison for r in both.tables[1].rows] == [r.comparison for r in one.rows]


def test_many_variants_of_one_seed_share_a_sentence(runs, built, tmp_path):
    s = runs.sweep(tmp_path / "s", {"mha": {1: 2.0}} | {f"v{i}": {1: 2.0 + i / 100} for i in range(1, 7)})
    (said,) = table.sentences(built(s).tables[0])
    assert said[1].startswith(
        "6 variants differ from attention=mha by +0.0100 to +0.0600, each in one seed: that gives no"
    )


def test_names_of_any_length_leave_the_figures_room(runs, tmp_path, capsys):
    """matplotlib warns where labels leave nothing for the axes."""
    for i in range(4):
        name = f"{i}{'x$_long' * 40}"
        runs.make(tmp_path / "s" / str(i), 2.0 + i / 10, overrides=(f"experiment_name={name}",),
                  changes={"experiment_name": name}, rows=40)  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write([tmp_path / "s"], out=tmp_path / "out")
    assert (tmp_path / "out" / "report.png").stat().st_size < 1_000_000
    capsys.readouterr()
