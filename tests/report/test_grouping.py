"""Runs in memory into variants: flat configs, grids of a tuned key, which runs count."""

import itertools

import pytest
from made import GRID, attention, config, grouped, over_lr, run, several

from llmlab.errors import UserError
from llmlab.report import variants
from llmlab.report.variants import flatten

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


def test_numbers_and_words_are_ordered_as_numbers_then_words():
    assert sorted(["b", "10", "9", "1e-3", "a"], key=variants._number) == ["1e-3", "9", "10", "a", "b"]
