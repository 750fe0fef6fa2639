"""Which runs make a variant, what it is called, which runs count, and what everything is compared with."""

import json
import os

import pytest

from llmlab.errors import UserError

MHA, MLA = {"attention": {"_part_": "mha"}}, {"attention": {"_part_": "mla", "kv_rank": 8, "q_rank": None}}


def names(report):
    return [r.name for r in report.rows]


def why(report):
    return {r.name: r.why for r in report.runs if r.why is not None}


def test_names_without_a_sweep(runs, built, tmp_path):
    """A swapped part is one key; its options name it only where the part is the same. Quiet keys make no variant."""
    runs.make(tmp_path / "a", 2.0, changes=MHA)
    runs.make(tmp_path / "b", 2.1, changes=MLA | {"train.keep": 5, "data.num_workers": 2})
    assert names(built(tmp_path)) == ["attention=mha", "attention=mla"]
    runs.make(tmp_path / "c", 2.2, changes={"attention": {"_part_": "mla", "kv_rank": 16, "q_rank": None}})
    report = built(tmp_path)
    expected = ["attention=mha", "attention=mla, attention.kv_rank=8", "attention=mla, attention.kv_rank=16"]
    assert sorted(names(report)) == sorted(expected)
    assert report.keys["attention.kv_rank"]["attention=mha"] is None
    runs.make(tmp_path / "d", 2.2, changes=MHA | {"mask": {"_part_": "causal"}})
    assert "attention=mha, mask=causal" in names(built(tmp_path))


def test_a_list_is_named_as_it_is_typed(runs, built, tmp_path):
    for i, words in enumerate((["heads"], ["stacks.main.layers.*", "-bias"], ["model.dim=32"], None)):
        runs.make(tmp_path / str(i), 2.0 + i / 10, changes={"train.learns": words})
    expected = ["[heads]", "[stacks.main.layers.*,-bias]", "[model.dim=32]", "null"]
    assert sorted(names(built(tmp_path))) == sorted(f"train.learns={value}" for value in expected)


def test_names_from_what_was_typed(runs, built, tmp_path):
    """size=micro changes three keys, but one word was typed."""
    for name, dim in (("nano", 32), ("micro", 64)):
        changes = {"model.dim": dim, "model.n_layers": dim // 8, "train.batch_size": dim}
        runs.make(tmp_path / name, 2.0, changes=changes, overrides=(f"size={name}", "seed=1", "hydra.run.dir=x"))
    report = built(tmp_path)
    assert sorted(names(report)) == ["size=micro", "size=nano"]
    assert list(report.keys) == ["model.dim", "model.n_layers", "train.batch_size"]


def test_names_of_variants_that_differ_in_much(runs, built, tmp_path):
    runs.make(tmp_path / "a", 2.0)
    many = {
        "model.family": "gpt2",
        "model.dim": 64,
        "norm": {"_part_": "layernorm"},
        "optimizer.lr": 0.1,
        "train.batch_size": 4,
    }
    runs.make(tmp_path / "b", 2.0, changes=many)
    assert sorted(names(built(tmp_path))) == ["model=gpt2, 4 more keys", "model=llama3, 4 more keys"]


def test_names_of_unlike_command_lines(runs, built, tmp_path):
    """Runs that have nothing to do with each other are called what was typed, not by all in which they differ."""
    gpt2 = {"model.family": "gpt2", "norm": {"_part_": "layernorm"}, "model.dim": 64, "model.bias": True, "mask": None}
    runs.make(tmp_path / "a", 2.0)
    runs.make(tmp_path / "b", 2.0, changes=gpt2, overrides=("model=gpt2", "seed=1"))
    mla = {**MLA, "optimizer.lr": 0.1, "train.batch_size": 4, "data.seq_len": 8, "budget.steps": 50}
    typed = ("attention=mla", "optimizer.lr=0.1", "train.batch_size=4", "data.seq_len=8", "budget.steps=50")
    runs.make(tmp_path / "c", 2.0, changes=mla, overrides=typed)
    cut = "model=llama3, attention=mla, budget.steps=50, data.seq_len=8, 2 more keys"
    assert sorted(names(built(tmp_path))) == ["model=gpt2", "model=llama3", cut]
    runs.make(tmp_path / "d", 2.0, changes={"init": {"_part_": "small"}})  # typed as a was: the config tells
    runs.make(tmp_path / "e", 2.0, changes={"init": {"_part_": "small"}, "data.seq_len": 8}, seed=2)
    assert {n for n in names(built(tmp_path)) if n.startswith("model=llama3, i")} == {
        "model=llama3, init=small, data.seq_len=16",
        "model=llama3, init=small, data.seq_len=8",
    }


def test_one_text_typed_as_two_paths_is_one_variant(runs, built, tmp_path):
    runs.make(tmp_path / "a", 2.0, seed=1, changes={"data.path": "texts"})
    runs.make(tmp_path / "b", 2.0, seed=2, changes={"data.path": "/home/me/texts"})
    assert [r.n for r in built(tmp_path).rows] == [2]


def test_baseline(runs, built, tmp_path):
    s = runs.sweep(tmp_path / "s", {"mla": {1: 2.0, 2: 2.1}, "mha": {1: 2.2, 2: 2.3}, "gqa": {1: 2.2, 2: 2.4}})
    assert names(built(s)) == ["attention=mla", "attention=mha", "attention=gqa"]  # the order typed
    assert names(built(s, asked="attention=gqa"))[0] == "attention=gqa"
    with pytest.raises(UserError, match="attention=mqaa.*did you mean"):
        built(s, asked="attention=mqaa")
    with pytest.raises(UserError, match="valid: attention=gqa, attention=mha"):
        built(s, asked="mha")
    (s / "sweep.json").unlink()
    runs.make(s / "old", 3.0, changes={"attention": {"_part_": "new"}}, began="2025-01-01T00:00:00+00:00")
    assert built(s).baseline == "attention=new"  # the oldest run


def test_baseline_of_a_grid(runs, built, tmp_path):
    """Keys that report.baseline leaves open take their first value in the sweep; without a sweep that is ambiguous."""
    points = []
    for a in ("mha", "mla"):
        for f in ("swiglu", "gelu"):
            folder = f"attention={a},ffn={f}"
            parts = {"attention": runs.PART[a], "ffn": {"_part_": f}}
            runs.make(tmp_path / folder, 2.0, changes=parts, overrides=(f"attention={a}", f"ffn={f}"))
            points.append({"folder": folder, "overrides": folder.split(",")})
    keys = {"attention": ["mha", "mla"], "ffn": ["swiglu", "gelu"], "seed": ["1"]}
    (tmp_path / "sweep.json").write_text(json.dumps({"schema": 1, "keys": keys, "points": points, "command": ""}))
    assert built(tmp_path).baseline == "attention=mha, ffn=swiglu"
    quoted = keys | {"attention": ['"mha"', "'mla'"]}  # as they may be typed, and as a path in Cyrillic is
    (tmp_path / "sweep.json").write_text(json.dumps({"schema": 1, "keys": quoted, "points": points, "command": ""}))
    assert built(tmp_path).baseline == "attention=mha, ffn=swiglu"
    assert built(tmp_path, asked="attention=mla").baseline == "attention=mla, ffn=swiglu"
    assert built(tmp_path, asked="attention=mla,ffn=gelu").baseline == "attention=mla, ffn=gelu"
    (tmp_path / "sweep.json").unlink()
    with pytest.raises(UserError, match="names 2 variants"):
        built(tmp_path, asked="attention=mla")


def test_baseline_without_a_complete_run(runs, built, tmp_path):
    s = runs.sweep(tmp_path / "s", {"mha": {1: None, 2: None}, "gqa": {1: 2.2, 2: 2.4}, "mla": {1: 2.2, 2: 2.4}})
    report = built(s)
    assert report.baseline == "attention=gqa"
    assert "The sweep's first variant, attention=mha, has no complete run" in report.notices[0]
    asked = built(s, asked="attention=mha")
    assert [r.verdict for r in asked.rows] == ["no complete run", "nothing to compare with", "nothing to compare with"]
    assert any("nothing to compare with" in n for n in asked.notices)


def test_runs_that_do_not_count(runs, built, tmp_path):
    losses = {"mha": {1: 2.0, 2: 2.1, 3: 2.2}, "mla": {1: 1.9, 2: None, 3: 2.1}}
    s = runs.sweep(tmp_path / "s", losses)
    runs.make(s / "again", 2.05, seed=1, changes={"attention": runs.PART["mha"]}, overrides=("attention=mha", "seed=1"),
              began="2026-02-01T00:00:00+00:00")  # fmt: skip
    runs.make(
        s / "short",
        2.6,
        seed=4,
        changes={"attention": runs.PART["mha"]},
        overrides=("attention=mha", "seed=4"),
        steps=50,
    )
    runs.make(
        s / "running",
        None,
        seed=5,
        changes={"attention": runs.PART["mha"]},
        overrides=("attention=mha",),
        status="running",
    )
    runs.make(s / "nan", 2.0, seed=6, changes={"attention": runs.PART["mha"]}, metrics={"val_loss": float("nan")})
    (s / "torn").mkdir()
    (s / "torn" / "run.json").write_text("{")
    report = built(s)
    base, mla = report.rows
    assert base.values == {1: 2.05, 2: 2.1, 3: 2.2}
    assert mla.comparison.seeds == [1, 3] and mla.comparison.only_baseline == [2]
    assert any("seed 2 of attention=mha alone" in n for n in report.notes)
    reasons = why(report)
    assert reasons["attention=mla,seed=2"] == "failed: the loss is not a number"
    assert reasons["attention=mha,seed=1"] == "a newer run of the same seed is counted: again"
    assert reasons["short"] == "it was cut short at step 50, where others of the variant have 100"
    assert reasons["running"].startswith("died: ")
    assert reasons["torn"].startswith("unreadable: torn/run.json: not valid JSON")
    assert reasons["nan"] == "its val_loss is nan"
    assert len(reasons) == 6
    json.dumps(report.plain(), allow_nan=False)


def test_points_that_left_nothing_or_little(runs, built, tmp_path):
    import shutil

    s = runs.sweep(tmp_path / "s", {"mha": {1: 2.0, 2: 2.1}, "mla": {1: 1.9, 2: 1.95}})
    shutil.rmtree(s / "attention=mla,seed=2")
    early = s / "attention=mha,seed=2"
    (early / "config.yaml").unlink()
    record = {
        "schema": 1,
        "overrides": ["attention=mha", "seed=2"],
        "metrics": {},
        "status": "failed",
        "reason": "killed: no memory",
    }
    (early / "run.json").write_text(json.dumps(record))
    broken = s / "attention=mla,seed=3"  # has a config, but ended before it had read its text
    runs.make(broken, None, seed=3, changes={"attention": runs.PART["mla"], "data.path": "texts"})
    (broken / "run.json").write_text(json.dumps({**record, "overrides": ["attention=mla", "seed=3"]}))
    report = built(s)
    assert names(report) == ["attention=mha", "attention=mla"]
    lines = {r.name: r for r in report.runs}
    assert lines["attention=mla,seed=3"].variant == "attention=mla"
    assert lines["attention=mla,seed=2"].why == "not run: the sweep has no run folder for this point"
    assert lines["attention=mha,seed=2"].why == "failed: killed: no memory"
    assert lines["attention=mha,seed=2"].variant == "attention=mha"
    assert lines["attention=mha,seed=2"].seed == 2


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda c: c.unlink(), "unreadable: its config.yaml is gone"),
        (lambda c: (c.unlink(), os.mkfifo(c)), "unreadable: NAME/config.yaml is no ordinary file"),
        (lambda c: c.write_text("a: &b [1]\nc: *b\n"), "unreadable: NAME/config.yaml: holds an alias"),
        (
            lambda c: c.write_text("[" * 20_000),
            "unreadable: NAME/config.yaml: not valid YAML (line 1: exceeded maximum nesting",
        ),
        (lambda c: c.write_text("seed: 9999-99-99"), "unreadable: NAME/config.yaml: not valid YAML"),
    ],
)
def test_a_config_that_can_not_be_read(harm, why, runs, built, tmp_path):
    s = runs.sweep(tmp_path / "s", {"mha": {1: 2.0, 2: 2.1}, "mla": {1: 1.9, 2: 1.95}})
    harm(s / "attention=mla,seed=1" / "config.yaml")
    lines = {r.name: r.why for r in built(s).runs}
    assert lines["attention=mla,seed=1"].startswith(why.replace("NAME", "attention=mla,seed=1"))


def grid(runs, root, losses, key="optimizer.lr"):
    """{attention: {lr: {seed: loss}}}"""
    for a, by_lr in losses.items():
        for lr, by_seed in by_lr.items():
            for seed, loss in by_seed.items():
                typed = (f"attention={a}", f"{key}={lr}", f"seed={seed}")
                bad = {"status": "failed", "reason": "diverged"} if loss is None else {}
                changes = {"attention": runs.PART[a], key: lr}
                runs.make(root / ",".join(typed), loss, seed=seed, overrides=typed, changes=changes, **bad)
    return root


def test_each_variant_has_the_best_of_its_own_grid(runs, built, tmp_path):
    losses = {
        "mha": {0.001: {1: 2.1, 2: 2.2}, 0.003: {1: 2.0, 2: 2.1}, 0.01: {1: 2.3, 2: 2.4}},
        "mla": {0.001: {1: 2.1, 2: 2.2}, 0.003: {1: 2.0, 2: 2.1}, 0.01: {1: 1.8, 2: 1.95}},
        "gqa": {0.003: {1: 2.0, 2: 2.1}, 0.01: {1: 1.0, 2: None}},
    }
    report = built(grid(runs, tmp_path, losses), asked="attention=mha")
    rows = {r.name: r for r in report.rows}
    assert list(rows) == ["attention=mha", "attention=gqa", "attention=mla"]
    tuned = {name: (r.tuned.value, r.tuned.edge) for name, r in rows.items()}
    assert tuned == {
        "attention=mha": ("0.003", None),
        "attention=mla": ("0.01", "highest"),
        "attention=gqa": ("0.003", "lowest"),  # 0.01 has one seed alone, so it was no candidate
    }
    assert rows["attention=mla"].values == {1: 1.8, 2: 1.95}
    assert rows["attention=mha"].tuned.grid == [("0.001", pytest.approx(2.15), 2), ("0.003", pytest.approx(2.05), 2),
                                                ("0.01", pytest.approx(2.35), 2)]  # fmt: skip
    notes = " ".join(report.notes)
    assert "best optimizer.lr=0.01 is the highest of its grid" in notes
    assert "attention=gqa: values of optimizer.lr that ended with fewer seeds" in notes
    assert "optimistic" in notes
    assert sum(r.beaten for r in report.runs) == 9 - 1 + 1 and sum(r.why is None for r in report.runs) == 6


def test_a_value_that_diverged_widens_the_grid(runs, built, tmp_path):
    losses = {"mha": {0.001: {1: 2.1}, 0.003: {1: 2.0}, 0.01: {1: None}}}
    (row,) = built(grid(runs, tmp_path, losses)).rows
    assert (row.tuned.value, row.tuned.edge) == ("0.003", None)


def test_what_is_tuned(runs, built, tmp_path):
    """Recipes with one value each are no grid; another key may be named; optimizer.lr may be a key like any other."""
    recipes = grid(runs, tmp_path / "a", {"mha": {0.001: {1: 2.1}}, "mla": {0.003: {1: 2.0}}})
    assert sorted(names(built(recipes))) == ["attention=mha, optimizer.lr=0.001", "attention=mla, optimizer.lr=0.003"]
    swept = grid(runs, tmp_path / "b", {"mha": {0.001: {1: 2.1}, 0.003: {1: 2.0}}})
    assert names(built(swept)) == ["llama3"]
    assert sorted(names(built(swept, tune="null"))) == ["optimizer.lr=0.001", "optimizer.lr=0.003"]
    other = grid(runs, tmp_path / "c", {"mha": {4: {1: 2.1}, 8: {1: 2.0}}}, key="train.batch_size")
    assert built(other, tune="train.batch_size").rows[0].tuned.value == "8"
    with pytest.raises(UserError, match=r"report.tune=train.batchsize: .*did you mean train.batch_size"):
        built(other, tune="train.batchsize")
    with pytest.raises(UserError, match="no variant has more than one value"):
        built(other, tune="optimizer.lr")
    with pytest.raises(UserError, match="no variant has more than one value"):
        built(recipes, tune="optimizer.lr")


WATCHED = {
    "train.log_every": 1,
    "train.validate_every": 7,
    "train.checkpoint_every": 9,
    "train.keep": 5,
    "train.sample": False,
}
WATCHED |= {
    "data.num_workers": 2,
    "experiment_name": "mine",
    "sweep": "s",
    "resume": "runs/a",
    "trainer.profiler": "simple",
}
WATCHED |= {"logger": {"samples": 3}, "trainer.enable_progress_bar": False, "data.path": "/elsewhere/texts"}


def test_bookkeeping_makes_no_variant(runs, built, tmp_path):
    runs.make(tmp_path / "a", 2.0, seed=1)
    for i, (key, value) in enumerate(WATCHED.items(), 2):
        typed = (f"{key}={value}", "hydra.run.dir=x", "hydra/launcher=joblib")
        runs.make(tmp_path / f"r{i}", 2.0, seed=i, changes={key: value}, overrides=typed)
    (row,) = built(tmp_path).rows
    assert row.n == 1 + len(WATCHED)


def test_added_keys_that_say_nothing_make_no_variant(runs, built, tmp_path):
    from llmlab.config.bookkeeping import ADDED

    runs.make(tmp_path / "a", 2.0, seed=1)
    runs.make(tmp_path / "b", 2.0, seed=2, changes={"published": "GPT-2", **dict(reversed(ADDED.items()))})
    (row,) = built(tmp_path).rows
    assert row.n == 2


@pytest.mark.parametrize("key", ["train.clip", "train.validation_batches", "trainer.max_time", "budget.steps"])
def test_what_changes_numbers_makes_one(runs, built, tmp_path, key):
    runs.make(tmp_path / "a", 2.0, seed=1)
    runs.make(tmp_path / "b", 2.0, seed=1, changes={key: 3})
    assert len(built(tmp_path).rows) == 2


def test_every_key_of_the_schema_is_bookkeeping_or_changes_numbers():
    from llmlab.config import bookkeeping as b
    from llmlab.config.guess import declared
    from llmlab.slot_names import SLOTS

    for key in declared():
        kinds = [b.within(key, names) for names in (b.NO_NUMBERS, b.WATCHED, (*b.NUMBERS, *SLOTS))]
        assert kinds.count(True) == 1, (key, kinds)
    for name in (*b.NO_NUMBERS, *b.WATCHED, *b.NUMBERS):
        assert any(b.within(key, (name,)) for key in declared()), f"{name} is no key"
