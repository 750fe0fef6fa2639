"""Runs in memory into variants: flat configs, grids of a tuned key, which runs count, order and baseline."""

import itertools
from pathlib import Path

import pytest
from made import run, variant

from llmlab.errors import UserError
from llmlab.report import variants
from llmlab.report.collect import Found, Sweep
from llmlab.report.variants import baseline, flatten, group, leading

ROOT = Path("/nowhere")


def config(**keys):
    """A nested config; `optimizer__lr` is optimizer.lr."""
    made = {"attention": {"_part_": "mha"}, "optimizer": {"_part_": "adamw", "lr": 0.1}, "data": {"path": "a"}}
    for key, value in keys.items():
        *path, last = key.split("__")
        node = made
        for name in path:
            node = node.setdefault(name, {})
        node[last] = value
    return made


def several(*points, **fields):
    """A run each: (loss, seed, {key: value})."""
    return [
        run(loss, seed, name=f"r{i}", config=config(seed=seed, **keys), began=f"2026-01-{i + 1:02}", **fields)
        for i, (loss, seed, keys) in enumerate(points)
    ]


def grouped(runs, tune=None, metric="val_loss", sweeps=()):
    return group(Found(ROOT, runs, list(sweeps)), metric, tune)


def attention(name):
    return {"attention": {"_part_": name}}


# ---------------------------------------------------------------- flat configs


def test_flatten():
    nested = {
        "a": {"_part_": "x", "b": 1, "c": {"_part_": "y", "d": None}},
        "e": {"f": [1, 2]},
        "g": None,
        "h": {"_part_": 3},
    }
    leaves, parts = flatten(nested)
    assert leaves == {"a": "x", "a.b": 1, "a.c": "y", "e.f": "[1, 2]"} and parts == {"a", "a.c"}
    assert flatten({}) == ({}, set())


@pytest.mark.parametrize(
    ("values", "typed"),
    [(["heads", "-bias"], "[heads,-bias]"), (["size=nano", "a.*"], "[size=nano,a.*]"), ([], "[]"), ([1, "a"], '[1, "a"]'),
     (["two words"], '["two words"]'), (["a,b"], '["a,b"]'), ([""], '[""]'), ([True, None], "[true, null]")],
)  # fmt: skip
def test_lists_are_as_typed(values, typed):
    assert flatten({"key": values})[0] == {"key": typed}


# ---------------------------------------------------------------- one text, one variant


def paths(found):
    return sorted((v.leaves.get("data.path"), len(v.runs)) for v in found)


def test_one_text_under_two_paths_is_one_variant():
    """The first twelve characters of a fingerprint tell texts apart."""
    runs = several((2.0, 1, {"data__path": "b"}), (2.0, 2, {"data__path": "a"}), (2.0, 3, {"data__path": "c"}))
    assert paths(grouped(runs)) == paths(grouped(runs[::-1])) == [("a", 3)]
    for fingerprint, wanted in (("g" * 64, [("a", 2), ("c", 1)]), ("f" * 11 + "g" * 53, [("a", 2), ("c", 1)]),
                                ("f" * 12 + "g" * 52, [("a", 3)])):  # fmt: skip
        runs[2].record["data"]["fingerprint"] = fingerprint
        assert paths(grouped(runs)) == wanted


def test_a_file_that_has_changed_is_another_text():
    runs = several((2.0, 1, {}), (2.0, 2, {}))
    runs[0].record["data"]["fingerprint"] = "g" * 64
    assert paths(grouped(runs)) == [("a", 1), ("a", 1)]


def test_a_run_that_read_no_text_has_that_of_its_like():
    runs = several((2.0, 1, {"data__path": "b"}), (None, 2, {"data__path": "b"}), (None, 3, {"data__path": "z"}))
    for r in runs[1:]:
        r.record.pop("data")
    assert paths(grouped(runs)) == [("b", 2), ("z", 1)]
    runs.append(several((2.0, 4, {"data__path": "a"}))[0])  # the same text, so the run without one has this name too
    assert paths(grouped(runs)) == [("a", 3), ("z", 1)]
    assert {v.leaves["data.fingerprint"] for v in grouped(runs)} == {"f" * 12, "unknown"}


def test_other_keys_of_the_data_make_another_variant_of_one_text():
    runs = several((2.0, 1, {}), (None, 2, {"data__seq_len": 4}), (2.0, 3, {"model__path": "a"}))
    runs[1].record.pop("data")
    found = grouped(runs)
    assert {v.runs[0].name: v.leaves["data.fingerprint"] for v in found} == {
        "r0": "f" * 12,
        "r1": "unknown",
        "r2": "f" * 12,
    }


def test_one_tokenizer_under_two_paths_is_one_variant():
    runs = several(*((2.0, s, {"tokenizer__path": p}) for s, p in ((1, "t2"), (2, "t1"), (3, "t0"))))
    for r, mark in zip(runs, ("same", "same", "other"), strict=True):
        r.__dict__["tokenizer"] = mark
    found = grouped(runs)
    assert sorted((v.leaves["tokenizer.path"], len(v.runs)) for v in found) == [("t0", 1), ("t1", 2)]


def test_a_run_without_a_config_is_no_variant():
    assert grouped([run(2.0, 1), *several((2.0, 2, {}))])[0].runs[0].seed == 2


# ---------------------------------------------------------------- grids

GRID = [(2.2, 1, 0.1), (2.4, 2, 0.1), (2.0, 1, 0.3), (2.1, 2, 0.3), (2.5, 1, 1.0), (2.6, 2, 1.0)]


def over_lr(points, **more):
    return several(*((loss, seed, {"optimizer__lr": lr, **more}) for loss, seed, lr in points))


def test_the_best_of_a_grid_is_the_least_mean():
    (v,) = grouped(over_lr(GRID))
    t = v.tuned
    assert (t.key, t.value, t.edge, t.seeds_differ) == ("optimizer.lr", "0.3", None, False)
    assert [(value, n) for value, _, n in t.grid] == [("0.1", 2), ("0.3", 2), ("1.0", 2)]
    assert [m for _, m, _ in t.grid] == pytest.approx([2.3, 2.05, 2.55])
    assert v.values("val_loss") == {1: 2.0, 2: 2.1} and v.beaten == {"r0", "r1", "r4", "r5"}
    assert v.left_out == {
        name: f"optimizer.lr={lr} is not the best of the variant's grid"
        for name, lr in (("r0", 0.1), ("r1", 0.1), ("r4", 1.0), ("r5", 1.0))
    }
    for order in itertools.islice(itertools.permutations(GRID), 0, 720, 101):
        assert grouped(over_lr(order))[0].tuned == t


def test_the_best_of_a_score_is_the_largest():
    runs = over_lr(GRID)
    for r in runs:
        r.record["metrics"] = {"val_score": r.record["metrics"]["val_loss"]}
        r.record["measures"] = {"score": "reward"}
    (v,) = grouped(runs, metric="val_score")
    assert (v.tuned.value, v.tuned.edge) == ("1.0", "highest")


def test_of_two_values_alike_the_smaller_number():
    alike = [(2.0, 1, lr) for lr in (10, 9, "auto", 2)]
    (v,) = grouped(over_lr(alike))
    assert (v.tuned.value, v.tuned.edge) == ("2", "lowest")
    assert [value for value, _, _ in v.tuned.grid] == ["2", "9", "10", "auto"]  # by number, and then words
    (v,) = grouped(over_lr([(2.0, 1, "b"), (2.0, 1, "a"), (1.0, 1, None)]))
    assert [value for value, _, _ in v.tuned.grid] == ["a", "b", "null"] and v.tuned.edge == "highest"


def test_a_value_with_fewer_seeds_is_no_candidate():
    (v,) = grouped(over_lr([*GRID, (1.0, 1, 3.0)]))
    assert (v.tuned.value, v.tuned.seeds_differ) == ("0.3", True) and v.tuned.grid[-1] == ("3.0", 1.0, 1)
    assert v.left_out["r6"].startswith("optimizer.lr=3.0 is not") and v.tuned.edge is None


def test_a_value_of_which_no_run_ended_is_of_the_grid():
    runs = over_lr([(2.0, 1, 0.1), (3.0, 1, 0.3)])
    runs += [run(None, 1, name="bad", config=config(optimizer__lr=1.0), status="failed", reason="inf", began="2026-02")]
    (v,) = grouped(runs)
    assert v.tuned.grid == [("0.1", 2.0, 1), ("0.3", 3.0, 1), ("1.0", None, 0)] and v.tuned.edge == "lowest"
    assert v.left_out["bad"] == "failed: inf" and "bad" not in v.beaten and v.tuned.seeds_differ
    (v,) = grouped([*runs[2:], run(None, 1, name="worse", config=config(optimizer__lr=2.0), status="failed")])
    assert v.tuned is None and v.counted == {} and v.left_out == {"bad": "failed: inf", "worse": "failed"}


def test_a_variant_with_one_value_is_untuned_where_others_are_tuned():
    runs = over_lr(GRID) + over_lr([(2.0, 1, 0.3)], **attention("mla"))
    found = {v.leaves["attention"]: v.tuned for v in grouped(runs)}
    assert (found["mla"].edge, found["mla"].value, found["mla"].seeds_differ) == ("only", "0.3", False)
    assert found["mha"].edge is None


def test_the_tuned_key():
    assert [len(grouped(over_lr(GRID), tune=t)) for t in (None, "optimizer.lr", "null", "none")] == [1, 1, 3, 3]
    assert all(v.tuned is None for v in grouped(over_lr(GRID), tune="null"))
    sizes = several(*((2.0 + size, 1, {"train__batch_size": size, "optimizer__lr": 0.3}) for size in (4, 8)))
    assert len(grouped(sizes)) == 2
    (v,) = grouped(sizes, tune="train.batch_size")
    assert (v.tuned.key, v.tuned.value) == ("train.batch_size", "4")
    seeds = over_lr([(2.0, 1, 0.1), (2.0, 2, 0.1)])
    assert grouped(seeds)[0].tuned is None
    # A recipe of its own for each attention is no grid.
    recipes = over_lr([(2.0, 1, 0.1)]) + over_lr([(2.0, 1, 0.3)], **attention("mla"))
    assert len(grouped(recipes)) == 2 and not any(v.tuned for v in grouped(recipes))
    # A run that is watched otherwise is of the same variant, so its value is of the same grid.
    watched = over_lr([(2.0, 1, 0.1)]) + over_lr([(2.1, 1, 0.3)], train__log_every=3)
    assert grouped(watched)[0].tuned.value == "0.1"
    with pytest.raises(
        UserError, match=r"report\.tune=optimizer\.lrs: no run has such a key; did you mean optimizer\.lr"
    ):
        grouped(seeds, tune="optimizer.lrs")
    with pytest.raises(
        UserError, match=r"report\.tune=optimizer\.lr: no variant has more than one value of it; leave it out"
    ):
        grouped(recipes, tune="optimizer.lr")


# ---------------------------------------------------------------- which runs count


def counts(*runs):
    """Reasons why some don't, and who does."""
    (v,) = grouped(list(runs))
    return v.left_out, [r.name for r in v.counted.values()]


def one(name, loss=2.0, seed=1, **fields):
    return run(loss, seed, name=name, config=config(), **fields)


def test_why_a_run_does_not_count():
    whole = one("whole")
    for made, why in (
        (one("bad", status="failed"), "failed"),
        (one("bad", status="failed", reason="no memory"), "failed: no memory"),
        (one("bad", None), "it has no val_loss"),
        (one("bad", float("nan")), "its val_loss is nan"),
        (one("bad", float("-inf")), "its val_loss is -inf"),
        (one("bad", steps=99), "it was cut short at step 99, where others of the variant have 100"),
    ):
        assert counts(made, whole) == ({"bad": why}, ["whole"])
    long = one("long", seed=2, steps=12_345)
    assert counts(whole, long)[0] == {"whole": "it was cut short at step 100, where others of the variant have 12,345"}
    # A failed run's steps are no measure, nor is a number of steps where minutes were the budget.
    assert counts(whole, one("bad", seed=2, status="failed", steps=999))[1] == ["whole"]
    assert counts(*(one(f"m{s}", 2.0, s, steps=s, budget={"unit": "minutes"}) for s in (1, 2)))[0] == {}
    bare = [one(f"b{s}", 2.0, s) for s in (1, 2)]
    for r in bare:
        del r.record["steps"], r.record["budget"]
    assert counts(*bare) == ({}, ["b1", "b2"])
    bare[0].record["steps"] = 1
    assert counts(*bare)[0] == {"b2": "it was cut short at step 0, where others of the variant have 1"}


def test_the_newest_of_a_seed_counts():
    runs = [one(n, began=b) for n, b in (("old", "2026-01"), ("new", "2026-03"), ("mid", "2026-02"))]
    for order in itertools.permutations(runs):
        left, counted = counts(*order)
        assert counted == ["new"]
        assert left["mid"] == "a newer run of the same seed is counted: new"
        assert left["old"] == "a newer run of the same seed is counted: mid"
    same = [one(n, began="2026-01") for n in ("b", "a")]  # begun at once: by name
    assert counts(*same)[1] == counts(*reversed(same))[1] == ["b"]
    assert counts(runs[0], one("last", began="2027", status="failed"))[1] == ["old"]


# ---------------------------------------------------------------- order and baseline


def a_sweep(name, keys, runs, fixed=()):
    points = [{"folder": r.name, "overrides": [f"{k}={v}" for k, v in keys.items()]} for r in runs]
    return Sweep(ROOT, name, "", keys, fixed, points)


THREE = [(2.0, 1, attention(n)) for n in ("c", "a", "b")]


def parts(found):
    return [v.leaves["attention"] for v in found]


def test_the_order_is_that_of_the_sweep_and_then_of_names():
    runs = several(*THREE)
    assert parts(grouped(runs)) == ["a", "b", "c"]
    points = [runs[2], runs[0]]
    swept = grouped(runs, sweeps=[a_sweep("s", {"attention": ["b", "c"]}, points)])
    assert parts(swept) == ["b", "c", "a"]  # what is of no sweep comes last


def test_sweeps_are_in_the_order_of_their_folders():
    runs = [run(2.0, 1, name=f"{folder}/r", config=config(**attention(n))) for folder, n in (("y", "a"), ("x", "b"))]
    sweeps = [Sweep(ROOT / folder, None, "", {}, (), [{"folder": "gone"}, {"folder": "r"}]) for folder in "yx"]
    assert parts(grouped(runs, sweeps=sweeps)) == parts(grouped(runs, sweeps=sweeps[::-1])) == ["b", "a"]


def chosen(runs, sweeps=(), asked=None, pool=()):
    found = Found(ROOT, runs, list(sweeps))
    variants_ = group(found, "val_loss", None)
    wanted = [v for v in variants_ if v.leaves["attention"] in pool]
    base, line = baseline(found, variants_, asked, wanted)
    return base.leaves["attention"], line


def test_without_a_sweep_the_oldest_run_is_the_baselines():
    runs = several(*THREE)
    assert chosen(runs) == ("c", None)  # begun first
    assert chosen(runs, pool="ab") == ("a", None)
    assert leading(Found(ROOT, runs), grouped(runs)).leaves["attention"] == "c"
    swept = Found(ROOT, runs, [a_sweep("s", {}, [runs[2], runs[0]])])
    assert leading(swept, grouped(runs)).leaves["attention"] == "b"


def test_the_baseline_is_the_sweeps_first():
    runs = several(*THREE)
    keys = {"seed": ["1"], "attention": ["b", "c"]}
    swept = [a_sweep("s", keys, runs)]
    assert chosen(runs, swept) == ("b", None) and chosen(runs, swept, pool="a") == ("b", None)
    only_seeds = a_sweep("r", {"seed": ["1", "2"], "train.keep": ["3"], "optimizer.wd": []}, runs)
    assert chosen(runs, [only_seeds, *swept]) == ("b", None)  # the first that varies something
    runs[2].record["metrics"] = {}
    line = "The sweep's first variant, attention=b, has no complete run; compared with attention=c instead."
    assert chosen(runs, swept) == ("c", line)
    two = [a_sweep("s", {"attention": ["b"], "optimizer": ["adamw"]}, runs)]
    assert "first variant, attention=b, optimizer=adamw, has" in chosen(runs, two)[1]
    assert chosen(runs, [a_sweep("s", {"attention": ["zzz"]}, runs)])[0] == "c"  # it isn't there at all
    for r in runs:
        r.record["metrics"] = {}
    assert chosen(runs, swept) == ("b", None)  # none has a complete run, so none is a better one
    assert chosen(runs, [a_sweep("s", {"attention": ["zzz"]}, runs)]) == ("c", None)


def test_of_several_that_fit_the_first_with_a_complete_run():
    points = [
        (None, 1, {**attention("b"), "ffn": {"_part_": "x"}}),
        (2.0, 1, {**attention("b"), "ffn": {"_part_": "y"}}),
    ]
    runs = several(*points)
    base, line = baseline(
        found := Found(ROOT, runs, [a_sweep("s", {"attention": ["b"]}, runs)]), group(found, "val_loss", None), None, ()
    )
    assert (base.leaves["ffn"], line) == ("y", None)


def test_a_tuned_key_is_no_key_of_the_first_variant():
    runs = over_lr(GRID) + over_lr([(2.0, 1, 0.3), (2.5, 1, 0.1)], **attention("mla"))
    keys = {"optimizer.lr": ["0.1", "0.3"], "attention": ["mla", "mha"]}
    assert chosen(runs, [a_sweep("s", keys, runs)]) == ("mla", None)


def asking(runs, asked, sweeps=()):
    found = Found(ROOT, runs, list(sweeps))
    base, line = baseline(found, group(found, "val_loss", None), asked, ())
    assert line is None
    return base.name


def test_the_baseline_that_is_asked_for():
    points = [(2.0, 1, {**attention(a), "ffn": {"_part_": f}}) for a in "ab" for f in "xy"]
    runs = several(*points)
    name = "attention=a, ffn=y"
    for asked in (name, "attention=a,ffn=y", "ffn=y, attention=a"):
        assert asking(runs, asked) == name
    with pytest.raises(UserError) as e:
        asking(runs, "attention=b")
    assert str(e.value) == (
        "report.baseline=attention=b names 2 variants: attention=b, ffn=x; attention=b, ffn=y; name one of them"
    )
    swept = [a_sweep("s", {"attention": ["a", "b"], "ffn": ["y", "x"]}, runs)]
    assert (
        asking(runs, "attention=b", swept) == "attention=b, ffn=y"
        and asking(runs, "ffn=x", swept) == "attention=a, ffn=x"
    )
    elsewhere = [a_sweep("s", {"attention": ["a", "b"], "ffn": ["zzz", "y"]}, runs)]
    with pytest.raises(UserError, match="names 2 variants"):  # the sweep's first value is of neither
        asking(runs, "attention=b", elsewhere)
    for asked in ("attention=c", "b", "attention=b,ffn=z"):
        with pytest.raises(UserError, match=f"^report.baseline={asked}: there is no such variant; "):
            asking(runs, asked)


def test_one_that_is_all_that_was_asked_goes_before_those_that_are_more():
    """By its name, or by its keys in another order."""
    labels = [{"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "2"}]
    some = [variant(", ".join(f"{k}={v}" for k, v in label.items()), {1: 2.0}) for label in labels]
    for v, label in zip(some, labels, strict=True):
        v.keys = label
    for asked in ("a=1, b=2", "a=1,b=2", "b=2,a=1"):
        assert baseline(Found(ROOT, []), some, asked, ()) == (some[1], None)
    with pytest.raises(UserError, match="names 2 variants"):
        baseline(Found(ROOT, []), some, "a=1", ())
    lone = several((2.0, 1, {}), family="llama3")
    assert asking(lone, "llama3") == "llama3"  # the only one is named by its family


def test_a_model_is_asked_for_by_its_family():
    runs = several(*((2.0, 1, {"model": {"family": f, "bias": f == "gpt2", "dim": 4}}) for f in ("gpt2", "llama3")))
    name = asking(runs, "model=llama3")
    assert name == asking(runs, "model.family=llama3") == asking(runs, "model.bias=false")
    assert name.startswith("model=llama3")
    alike = several(*((2.0, 1, {"model": {"family": "gpt2"}, **attention(n)}) for n in "ab"))
    assert asking(alike, "model=gpt2,attention=b") == "attention=b"  # it names none, and is true of both


def test_a_word_that_was_typed_fits():
    """size=nano is no key of a config; it was typed."""
    runs = several((2.0, 1, {"model": {"dim": 4}}), (2.0, 1, {"model": {"dim": 8}}), (2.0, 1, {"model": {"dim": 16}}))
    for r, size in zip(runs, ("nano", "micro", "nano"), strict=True):
        r.record["overrides"] = [f"size={size}", "a=b"]
    assert asking(runs, "size=micro") == asking(runs, "model.dim=8")
    with pytest.raises(UserError, match="names 2 variants"):
        asking(runs, "size=nano")
    again = several((2.0, 2, {"model": {"dim": 8}}))  # of the same variant, typed otherwise: both are true of it
    again[0].record["overrides"] = ["size=nano"]
    assert asking([*runs[:2], *again], "size=micro") == asking(runs, "size=micro")
    with pytest.raises(UserError, match="names 3 variants"):  # what is asked for is not left to the sweep
        asking([*runs, *again], "size=nano", [a_sweep("s", {"size": ["micro"]}, runs)])


def test_numbers_and_words_are_ordered_as_numbers_then_words():
    assert sorted(["b", "10", "9", "1e-3", "a"], key=variants._number) == ["1e-3", "9", "10", "a", "b"]
