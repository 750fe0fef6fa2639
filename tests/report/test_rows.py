"""Rows of tables: what each number is of, the words of rows without a comparison, and effects in tokens."""

import dataclasses
import math
import re

import pytest
import scipy.stats
from made import unended, variant

from llmlab.report import curves, measured, stats
from llmlab.report.measured import BITS
from llmlab.report.rows import compared, unpaired
from llmlab.report.variant import Tuned

BASE = {1: 2.0, 2: 2.2, 3: 2.4}
REWARD = {"loss": "reward"}


def falling(end, tokens=100, start=4.0, n=11, name="val_loss"):
    """Rows of a curve that falls in a straight line to `end` at `tokens`."""
    return {name: [(tokens * i / (n - 1), start + (end - start) * i / (n - 1)) for i in range(n)]}


def by(name, shift, **fields):
    """A variant whose losses are those of BASE and a bit that differs by seed."""
    return variant(name, {s: v + shift + 0.001 * s for s, v in BASE.items()}, **fields)


def row(v, *more):
    return compared([variant("base", BASE), v, *more], "val_loss").rows[1]


def test_the_numbers_of_a_row():
    v = variant("v", BASE, parameters={"total": 70, "active": 50}, flops_per_token=3.0, tokens_per_second=20.0,
                peak_memory_bytes=5)  # fmt: skip
    for seed, (tokens, speed, memory) in {1: (10, 40.0, 7), 2: (20, None, 9), 3: (60, 0.0, 2)}.items():
        v.counted[seed].record.update(tokens_seen=tokens, tokens_per_second=speed, peak_memory_bytes=memory)
    found = row(v)
    assert (found.parameters, found.active, found.flops_per_token) == (70, 50, 3.0)
    assert (found.tokens, found.flops) == (30.0, 90.0)  # a mean, and the tokens' FLOPs
    assert found.tokens_per_second == 40.0  # of those that measured it
    assert found.peak_memory_bytes == 9  # the most of any
    assert (found.values, found.n, found.name) == (BASE, 3, "v")
    assert found.mean == pytest.approx(2.2) and found.sd == pytest.approx(0.2)
    low, high = scipy.stats.t.interval(0.95, 2, 2.2, 0.2 / 3**0.5)
    assert found.half_width == pytest.approx((high - low) / 2)
    assert found.comparison.differences == [0.0, 0.0, 0.0]


def test_a_row_without_measurements():
    v = variant("v", {1: 2.0}, parameters={}, flops_per_token=None, tokens_seen=None)
    found = row(v)
    assert (found.parameters, found.active, found.flops_per_token, found.flops, found.tokens) == (0, 0, 0.0, 0.0, 0)
    assert (found.tokens_per_second, found.peak_memory_bytes, found.sd, found.half_width) == (None, None, None, None)
    assert (found.n, found.mean, found.verdict) == (1, 2.0, "one seed")
    none = row(unended("none"))
    assert (none.n, none.mean, none.sd, none.half_width, none.tokens, none.comparison) == (0, None, None, None, 0, None)
    assert (none.verdict, none.short, none.sentence) == ("no complete run", "no complete run", None)
    assert (none.tokens_per_second, none.peak_memory_bytes) == (None, None)
    assert (none.parameters, none.curve, none.difference) == (1000, None, None)  # what was to be run is known


def test_words_of_a_table():
    tuned = Tuned("optimizer.lr", "0.1", [], None)
    better, worse = by("better", -0.5, rows=falling(1.5)), by("worse", 0.5, rows=falling(2.5))
    better.tuned, better.keys = tuned, {"attention": "mla"}
    table = compared([variant("base", BASE, rows=falling(2.0)), worse, unended("none"), better, variant("lone", {9: 1.0})],
                     "val_loss", ["first"])  # fmt: skip
    assert [r.verdict for r in table.rows] == ["baseline", "worse", "no complete run", "better", "no common seed"]
    assert [r.is_baseline for r in table.rows] == [True, False, False, False, False]
    assert [r.comparison is None for r in table.rows] == [True, False, True, False, False]
    assert [r.sentence is None for r in table.rows] == [True, False, True, False, False]
    assert [r.curve is None for r in table.rows] == [True] * 5  # not each has one
    assert (table.rows[3].tuned, table.rows[3].keys) == (tuned, {"attention": "mla"})
    assert (table.metric, table.unit, table.baseline, table.higher_is_better) == (
        "val_loss",
        "nats per target",
        "base",
        False,
    )
    assert table.notices == ["first"] and table.title == "Against base"
    assert table.rows[1].sentence.startswith("worse is worse than base: +0.5020 (+22.8 %), 97.5 % interval [")
    rewarded = [variant("base", BASE, measures=REWARD), by("up", 0.5, measures=REWARD)]
    assert [r.verdict for r in compared(rewarded, "val_loss").rows] == ["baseline", "better"]


def test_a_baseline_without_a_run():
    table = compared([unended("base"), variant("v", BASE), unended("none")], "val_loss")
    assert [r.verdict for r in table.rows] == ["no complete run", "nothing to compare with", "no complete run"]
    assert [r.sentence for r in table.rows] == [None] * 3 and table.rows[1].comparison is None


def test_fairness_is_of_the_variants_that_count():
    v, none = variant("v", BASE, tokens_seen=20_000), unended("none", batch__seq_len=99)
    for order in ((v, none), (none, v), (v,)):
        (notice,) = compared([variant("base", BASE), *order], "val_loss").notices
        assert "v saw 100.0 % more tokens" in notice


@pytest.mark.parametrize(("gap", "digits"), [(0.001, 4), (0.0009, 5), (-0.0009, 5), (-0.001, 4), (0.0, 4), (1.0, 4)])
def test_small_differences_have_a_fifth_decimal(gap, digits):
    """Of the whole table, where one of them needs it; none at all needs none."""
    base = {1: 0.0, 2: 0.0}
    small = variant("small", {1: gap, 2: gap})
    assert compared([variant("base", base), variant("large", {1: 1.0, 2: 1.0}), small], "val_loss").digits == digits
    assert compared([variant("base", base), unended("none")], "val_loss").digits == 4


def test_those_that_can_not_be_compared_say_why():
    base = variant("base", BASE)
    text, also = (variant(n, BASE, data__fingerprint=n) for n in ("text", "also"))
    mlm = variant("mlm", BASE, {"objective": "mlm"})
    table = unpaired([text, mlm, unended("none"), also], base, "val_loss")
    assert table.notices == [
        "Not comparable with base, for the text is another one: text, also.",
        "Not comparable with base, for objective=mlm has another loss than clm: mlm.",
    ]
    assert [r.verdict for r in table.rows] == ["not comparable", "not comparable", "no complete run", "not comparable"]
    assert table.rows[0].sentence == "text is not comparable with base: the text is another one."
    assert table.rows[2].sentence is None and {r.comparison for r in table.rows} == {None}
    assert {r.is_baseline for r in table.rows} == {False}
    assert (table.baseline, table.drawn, table.digits, table.unit) == (None, None, 4, "nats per target")
    assert table.title == "On their own" and unpaired([text], base, "val_loss").title == "On its own"
    assert unpaired([text, unended("none")], base, "val_loss").title == "On its own"
    lone = [variant(name, {1: 2.0}, data__fingerprint=name) for name in ("x", "y")]
    assert [unpaired(lone[:n], base, "val_loss").title for n in (1, 2)] == ["On its own", "On their own"]


# ---------------------------------------------------------------- effects in tokens


def sooner(own, base, shift=-0.5, name="v", **fields):
    """The end of the sentence on a variant that is better, or worse, by far."""
    variants = [variant("base", BASE, rows=base, **fields), by(name, shift, rows=own, **fields)]
    said = re.search(r" (It|The baseline) was at .*", compared(variants, "val_loss").rows[1].sentence)
    return said[0] if said else ""


def test_how_much_sooner_a_loss_was_reached():
    """From 4 in straight lines to 2 and to 1 at 100 tokens: 2 is reached at 200/3."""
    ahead, behind = falling(1.0), falling(2.0)
    assert sooner(ahead, behind) == " It was at the baseline's final loss with 33 % fewer tokens."
    assert sooner(behind, ahead, 0.5) == " The baseline was at its final loss with 33 % fewer tokens."
    assert sooner(behind, ahead) == ""  # better at last, though not by this curve
    assert sooner(ahead, behind, 1e-9) == sooner(behind, ahead, 1e-9) == ""  # not distinguishable


def test_it_is_said_beyond_2_percent():
    for share, said in (
        (0.03, " It was at the baseline's final loss with 3 % fewer tokens."),
        (0.021, "2 %"),
        (0.019, ""),
    ):
        end = 4 - 2 / (1 - share)  # reaches 2 at 1 - share of the way
        assert said in sooner(falling(end), falling(2.0)) and bool(said) == bool(sooner(falling(end), falling(2.0)))


def test_curves_of_other_lengths_are_not_read():
    """More tokens come down later; 1 % is no other length."""
    for tokens, told in (
        (100, True),
        (100.9, True),
        (99.1, True),
        (101, False),
        (99, False),
        (200, False),
        (50, False),
    ):
        assert bool(sooner(falling(1.0, tokens), falling(2.0))) == told, tokens


def test_only_a_loss_is_read():
    """Of the curve of the metric itself, and where lower is better."""
    for metric, shift, told in (("val_loss", -0.5, True), ("val_score", 0.5, False)):
        base = variant("base", BASE, rows=falling(2.0, name=metric))
        variants = [base, by("v", shift, rows=falling(1.0, name=metric))]
        for run in (r for v in variants for r in v.runs):
            run.record["metrics"] = {metric: run.record["metrics"]["val_loss"]}
            run.record["measures"] = {"score": "reward"}
        found = compared(variants, metric)
        assert (found.drawn, found.rows[1].verdict) == (metric, "better")
        assert ("fewer tokens" in found.rows[1].sentence) == told
    training = {"loss": falling(1.0)["val_loss"]}
    assert sooner(training, {"loss": falling(2.0)["val_loss"]}) == ""  # too few validations: the training loss is drawn


def test_curves_without_a_stretch_in_common_are_none():
    """Seeds that were measured at other tokens have no mean."""
    apart = {s: {"val_loss": [(1000 * s + t, v) for t, v in falling(1.0)["val_loss"]]} for s in BASE}
    for own, base in ((apart, falling(2.0)), (falling(1.0), apart), (apart, apart)):
        assert sooner(own, base) == ""
    table = compared([variant("base", BASE, rows=falling(2.0)), by("v", -0.5, rows=apart)], "val_loss")
    assert table.drawn == "val_loss" and (table.rows[1].curve, table.rows[1].difference) == (None, None)


def test_curves_of_rows():
    """Its own, and its difference seed by seed to the baseline's."""
    base, v = (variant(n, BASE, rows={s: falling(e + s) for s in BASE}) for n, e in (("base", 0.0), ("v", 0.5)))
    del v.counted[3]
    first, second = compared([base, v], "val_loss").rows
    assert (first.curve.mean[-1], first.curve.low[-1], first.curve.high[-1]) == pytest.approx((2, 1, 3))
    assert (second.curve.mean[-1], second.curve.high[-1]) == pytest.approx((2.0, 2.5))
    assert second.difference.mean[-1] == pytest.approx(0.5) and first.difference is None
    assert second.difference.mean[0] == 0.0
    curve = curves.Curve([10.0, 20.0, 30.0], [3.0, 2.0, 2.0], [], [])
    wanted = {4.0: 10.0, 3.0: 10.0, 2.5: 15.0, 2.0: 20.0, 1.9: None}
    assert {value: curve.reaches(value) for value in wanted} == wanted
    assert [curve.at(t) for t in (10.0, 15.0, 30.0)] == [3.0, 2.5, 2.0]


# ---------------------------------------------------------------- metrics


def kinds_of(**measures):
    v = variant("v", {1: 2.0, 2: 2.0})
    v.runs[0].record["measures"] = measures
    v.runs[1].record["measures"] = {}
    return v.runs


def test_which_way_is_better():
    for kind, higher in (
        ("nll", False),
        ("bits", False),
        ("accuracy", True),
        ("reward", True),
        ("margin", True),
        ("x", False),
    ):
        runs = kinds_of(score=kind, other="nll")
        assert measured.higher_is_better("val_score", runs) == measured.higher_is_better("score", runs) == higher
        assert not measured.higher_is_better("val_unknown", runs)
    assert not measured.higher_is_better("val_score", [])
    old = variant("v", {1: 2.0}).runs  # a record of before it was kept
    assert measured.higher_is_better("val_accuracy", old) and not measured.higher_is_better("val_loss", old)


def test_units():
    for kind, nats in (("nll", "nats per target"), ("bits", "nats per target"), ("accuracy", ""), ("margin", "")):
        runs = kinds_of(term=kind)
        assert measured.unit("val_loss", runs) == measured.unit("loss", runs) == nats
        assert measured.unit("val_term", runs) == ""
        for name in (BITS, "bits_per_byte", "val_source_bits_per_byte"):
            assert measured.unit(name, runs) == "bits per byte"
    assert measured.unit("val_loss", []) == ""
    titles = [measured.metric_title(m) for m in ("val_loss", BITS, "val_accuracy")]
    assert titles == ["validation loss", "bits per byte", "val_accuracy"]


def test_nothing_is_not_a_number():
    """A row is made of what counts, so none of its numbers is NaN."""
    for v in (unended("a"), variant("b", {1: 2.0}), variant("c", {1: 2.0, 2: 2.0})):
        numbers = [x for x in dataclasses.asdict(row(v)).values() if isinstance(x, float)]
        assert all(map(math.isfinite, numbers))
    assert isinstance(row(variant("c", {1: 2.0, 2: 2.0})).comparison, stats.Comparison)
