"""The order of variants, and the one that all are compared with, of runs in memory."""

import pytest
from made import GRID, ROOT, attention, config, grouped, over_lr, run, several, variant

from llmlab.errors import UserError
from llmlab.report.collect import Found, Sweep
from llmlab.report.variants import baseline, group, leading


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
