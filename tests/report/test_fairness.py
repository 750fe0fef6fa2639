"""What makes runs hard to compare: each trait alone, at the share from which it is said."""

import dataclasses
import itertools

import pytest
from made import unended, variant

from llmlab.report import fairness
from llmlab.report.fairness import kinds, largest, refusal, tokenizers_differ, traits, versions, warnings, would_be
from llmlab.report.measured import BITS

BASE = variant("base", {1: 2.0})
TEXT, HELD_OUT = "the text is another one", "the validation set is another one"
VALIDATION = ("train.validation_batches", "data.validation", "data.split")


def other(leaves=None, **fields):
    return variant("other", {1: 2.1}, leaves, **fields)


def test_nothing_differs():
    assert (
        refusal(BASE, BASE, "val_loss") is None and warnings([other()], BASE) == [] and versions([BASE, other()]) == []
    )


@pytest.mark.parametrize("metric", ["val_loss", "val_accuracy", BITS])
def test_refused_whatever_is_measured(metric):
    assert refusal(other(data__fingerprint="g"), BASE, metric) == TEXT
    for key in VALIDATION:
        assert refusal(other({key: 3}), BASE, metric) == refusal(BASE, other({key: 3}), metric) == HELD_OUT
    rewarded = other({"reward": "exact", "reward.field": "answer"})
    assert refusal(rewarded, BASE, metric) == "reward=exact reward.field=answer gives other rewards than no reward"
    assert refusal(BASE, rewarded, metric) == "no reward gives other rewards than reward=exact reward.field=answer"
    assert refusal(other({"rewarded": 1, "model.reward": 2}), BASE, metric) is None  # other keys that look like it


def test_a_part_of_the_validation_set_depends_on_how_it_is_cut():
    """Some batches of it are other samples where a batch has another size or there are more ranks; all of it is the same."""
    some = {"train.validation_batches": 2}
    for field in ({"batch__micro": 4}, {"devices": 2}):
        assert refusal(other(some, **field), variant("base", {1: 2.0}, some), "val_loss") == HELD_OUT
        assert refusal(other(**field), BASE, "val_loss") is None
    assert refusal(other(some), variant("base", {1: 2.0}, some), "val_loss") is None


def test_an_objective_has_a_loss_of_its_own_but_not_bits_per_byte():
    mlm = other({"objective": "mlm"})
    for metric in ("val_loss", "val_accuracy"):
        assert refusal(mlm, BASE, metric) == "objective=mlm has another loss than clm"
    assert refusal(mlm, BASE, BITS) is None


def with_tokenizer(mark, **fields):
    made = other(**fields)
    for run in made.runs:
        run.__dict__["tokenizer"] = mark
    return made


def test_a_tokenizer_changes_what_is_per_token():
    own, base = with_tokenizer("a"), with_tokenizer("b")
    for metric in ("val_loss", "val_perplexity", "loss", "loss_of_pairs"):
        said = f"the tokenizer is another one ({metric} is per token; report.metric=val_bits_per_byte is not)"
        assert refusal(own, base, metric) == said
        assert refusal(own, with_tokenizer("a"), metric) is None
    for metric in (BITS, "tokens_per_second"):
        assert refusal(own, base, metric) is None
    for reads, whole in (
        ("labelled", True),
        ("prompts", True),
        ("preferences", True),
        ("pairs", False),
        ("text", False),
    ):
        data = {"fingerprint": "f", "reads": reads}
        assert (refusal(with_tokenizer("a", data=data), with_tokenizer("b", data=data), "val_loss") is None) == whole


def test_the_text_comes_first():
    """Of several reasons the one that no other metric could mend."""
    leaves, field = {"data.validation": 0.2, "objective": "mlm", "reward": "exact"}, {"data__fingerprint": "g"}
    for word, mended in (("text", field), ("validation", leaves), ("loss", leaves), ("rewards", leaves)):
        assert word in refusal(with_tokenizer("a", leaves=leaves, **field), BASE, "val_loss")
        mended.pop(next(iter(mended)))
    assert "tokenizer" in refusal(with_tokenizer("a"), BASE, "val_loss")


def test_tokenizers_that_differ_on_one_text():
    """All of which bits per byte can compare: each counted run of each has them."""
    measured = {"metrics": {"val_loss": 2.0, BITS: 1.0}}
    a, b = with_tokenizer("a", **measured), with_tokenizer("b", **measured)
    assert tokenizers_differ([a, b]) and not tokenizers_differ([a, a]) and not tokenizers_differ([a])
    assert not tokenizers_differ([])
    assert not tokenizers_differ([a, b, with_tokenizer("a")])
    assert not tokenizers_differ([a, with_tokenizer("b", data__fingerprint="g", **measured)])
    half = variant("half", {1: 2.0, 2: 2.1}, **measured)
    half.counted[2].record["metrics"].pop(BITS)
    assert not tokenizers_differ([a, b, half])
    assert tokenizers_differ([a, unended("none", data__fingerprint="g"), b])  # it has nothing to compare


def test_groups_of_what_can_be_compared():
    text, more, mlm = other(data__fingerprint="g"), variant("more", {1: 2.2}), other({"objective": "mlm"})
    none = unended("none")
    assert kinds([BASE, text, none, more, mlm], "val_loss") == [[BASE, more], [text], [mlm]]
    assert kinds([none], "val_loss") == [] and kinds([BASE, mlm], BITS) == [[BASE, mlm]]
    late, early = [[variant(str(s), {s: 2.0}), variant(f"{s}b", {s: 2.0})] for s in (5, 2)]
    assert largest([late, early, [BASE]]) is early and largest([[BASE], late]) is late and largest([]) == []
    mixed = [variant("c", {9: 2.0}), variant("d", {1: 2.0})]
    assert largest([early, mixed]) is mixed  # its oldest run is the oldest of all


def test_what_a_variant_without_a_run_would_be():
    same = {"data.fingerprint": "f", "data.validation": 0.1, "data.split": "document"}
    base = variant("base", {1: 2.0}, same)
    assert would_be(unended("none", leaves={**same, "model.dim": 3}), base)
    for key in (*same, "objective"):
        assert not would_be(unended("none", leaves={**same, key: "else"}), base)


# ---------------------------------------------------------------- lines above the table


def test_the_length_and_the_objectives_options_are_said():
    (line,) = warnings([other(batch__seq_len=32), other(), variant("long", {1: 2.0}, batch__seq_len=64)], BASE)
    assert line.startswith("data.seq_len differs: base has 16, other has 32, long has 64. More context")
    masked = other({"objective.rate": 0.3})
    (line,) = warnings([masked, other()], BASE)
    assert line == "The objective's options differ in other: the loss may not measure the same thing."
    assert warnings([masked], variant("base", {1: 2.0}, {"objective.rate": 0.3})) == []


@pytest.mark.parametrize("field", ["cpu", "threads", "devices"])
def test_machines_are_said(field):
    there = other(**{f"hardware__{field}": ["cuda:0"] if field == "devices" else 2})
    (line,) = warnings([other(), there], BASE)
    assert warnings([there], BASE) == warnings([other()], there) == [line] and warnings([there], there) == []
    assert line == "The runs were made on different machines or thread counts: do not compare tokens/s and memory."


NAMES = {"active": "parameters__active", "flops": "flops_per_token", "tokens": "tokens_seen"}


def costing(name="other", **factors):
    """A variant with so many times what BASE has."""
    own = traits(BASE)
    return variant(name, {1: 2.0}, **{NAMES[k]: own[k] * factor for k, factor in factors.items()})


def test_compute_is_said_beyond_1_percent():
    for factor in (1.0099, 0.9901, 1.0):
        assert warnings([costing(active=factor), costing(flops=factor), costing(tokens=factor)], BASE) == []
    head = "Equal tokens is not equal compute: against base, in active parameters and FLOPs per token,"
    for factor, said in ((1.011, "+1.1 %"), (0.98, "−2.0 %"), (3.0, "+200.0 %")):
        assert warnings([costing(active=factor)], BASE) == [f"{head} other {said} and +0.0 %."]
        assert warnings([costing(flops=factor), costing()], BASE) == [f"{head} other +0.0 % and {said}."]
    both = [costing("a", active=1.5), costing("b", flops=0.5, active=2)]
    assert warnings(both, BASE) == [f"{head} a +50.0 % and +0.0 %; b +100.0 % and −50.0 %."]


def test_tokens_are_said_beyond_1_percent():
    for factor, said in ((1.1, "10.0 % more"), (0.5, "50.0 % fewer"), (1.011, "1.1 % more")):
        (line,) = warnings([costing(tokens=factor)], BASE)
        assert line.startswith(f"The budgets differ: against base, other saw {said} tokens. More tokens lower")
    (line,) = warnings([costing("a", tokens=2), costing("b", tokens=0.9), costing("c", tokens=2)], BASE)
    assert "against base, a, c saw 100.0 % more tokens; b saw 10.0 % fewer tokens." in line


def test_equal_compute_has_other_tokens():
    """Tokens times FLOPs a token within 1 % for every variant, else the budgets differ."""
    half = costing(tokens=0.5, flops=2)
    first, second = warnings([half, costing("same")], BASE)
    assert first == "Equal compute is not equal tokens: against base, other saw 50.0 % fewer tokens."
    assert (
        second.startswith("The total FLOPs agree, but against base, in active")
        and "other +0.0 % and +100.0 %" in second
    )
    for total, equal in ((1.0, True), (1.01, True), (0.99, True), (1.011, False), (0.989, False), (3.0, False)):
        first, second = warnings([costing(tokens=0.5, flops=2 * total)], BASE)
        assert first.startswith("Equal compute" if equal else "The budgets differ")
        assert second.startswith("The total FLOPs agree, but" if equal else "Equal tokens is not equal compute:")
    for order in itertools.permutations([half, costing("b", tokens=2)]):
        assert warnings(order, BASE)[0].startswith("The budgets differ")


def test_runs_of_unknown_cost_are_no_other_cost():
    nothing = {"parameters__active": None, "flops_per_token": None, "tokens_seen": None}
    unknown = variant("unknown", {1: 2.0}, **nothing)
    own = traits(unknown)
    assert (own["tokens"], own["active"], own["flops"]) == (0, 0, 0.0)
    assert warnings([costing()], unknown) == [] and warnings([unknown], unknown) == []


def test_many_variants_with_long_names_are_a_range():
    some = {f"a=1, b={i}": 1 + i / 10 for i in range(1, 6)}
    head = "against base, in active parameters and FLOPs per token,"
    four, five = ([costing(n, active=f, flops=2 - f) for n, f in list(some.items())[:k]] for k in (4, 5))
    assert f"{head} a=1, b=1 +10.0 % and −10.0 %; a=1, b=2 +20.0 %" in warnings(four, BASE)[0]
    (line,) = warnings(five, BASE)
    assert line.endswith(f"{head} 5 variants +10.0 % to +50.0 % and −50.0 % to −10.0 %.")
    short = [costing(f"b={i}", active=2) for i in range(5)]
    assert "b=0 +100.0 % and +0.0 %; b=1 +100.0 %" in warnings(short, BASE)[0]
    tokens = [costing(n, tokens=2) for n in some]
    assert "against base, 5 variants saw 100.0 % more tokens." in warnings(tokens, BASE)[0]
    long = dataclasses.replace(BASE, name="a=1, b=0")
    assert "against the baseline, 5 variants saw" in warnings(tokens, long)[0]
    assert "differs: the baseline has 16, other has 32" in warnings([other(batch__seq_len=32)], long)[0]


def test_commits_and_budgets_cut_short():
    a, b = other(versions={"commit": "a"}), other(versions={"commit": "b"})
    assert versions([a, b]) == ["The runs come from 2 commits of the code (see the table of runs)."]
    assert versions([a, a]) == versions([a, other()]) == []  # a record of before it was kept says nothing
    (line,) = versions([BASE, other(steps=99)])
    assert line.startswith("Some runs were cut short of their budget by trainer.max_steps")
    assert versions([other(steps=101), other(steps=100)]) == []
    nothing, one = other(budget={"unit": "minutes"}, steps=0), other(budget={"unit": "steps", "steps": 1})
    del one.runs[0].record["steps"]
    assert versions([nothing]) == [] and versions([one]) == [line]  # a record without steps has made none
    assert versions([other(budget={"unit": "minutes"})]) == versions([unended("none", steps=0)]) == []
    assert fairness.SHARE == 0.01


def test_a_batch_that_gave_way_to_the_data_is_said():
    first, few = variant("base", {1: 2.0}, {"train.batch_size": 16}), other({"train.batch_size": 9})
    (line,) = warnings([few, other({"train.batch_size": 16})], first)
    assert line.startswith("train.batch_size differs and was not typed: base has 16, other has 9. ")
    typed = other({"train.batch_size": 9}, overrides=["train.batch_size=9"])
    assert warnings([typed], first) == [] and warnings([first], typed) == []
