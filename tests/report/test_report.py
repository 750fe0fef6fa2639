"""The report: verdicts, and what is said above the table."""

import json
import random
import re

import pytest
from losses import BASE, change, shifted

from llmlab.errors import UserError
from llmlab.report import build, table, terminal, verdict
from llmlab.report.stats import Comparison
from llmlab.runs import probes


def words(report):
    return {r.name: r.verdict for r in report.rows}


# ---------------------------------------------------------------- verdicts


def test_verdicts_in_words(swept, built):
    report = built(swept)
    assert words(report) == {
        "attention=mha": "baseline",
        "attention=gqa": "not distinguishable",
        "attention=mla": "better",
        "attention=mqa": "worse",
    }
    said = {r.name: r.sentence for r in report.rows}
    assert re.search(
        r"not distinguishable from attention=mha with 4 seeds; about \d+ would be needed \(\d+ (or more|to \d+)\): ",
        said["attention=gqa"],
    )
    assert re.match(
        r"attention=mla is better than attention=mha: −0.0\d+ \(−1.\d %\), 9\d\.\d+ % interval \[−",
        said["attention=mla"],
    )
    assert report.rows[1].short.startswith("not distinguishable with 4 seeds; about ")
    assert any("80 % confidence interval (noncentral t)" in line for line in build.method(report))


def test_one_seed_identical_and_no_seed_in_common(runs, built, tmp_path):
    report = built(runs.sweep(tmp_path / "s", {"mha": {1: 2.0}, "mla": {1: 1.9}, "gqa": {2: 1.9}}))
    assert words(report) == {
        "attention=mha": "baseline",
        "attention=mla": "one seed",
        "attention=gqa": "no common seed",
    }
    assert "no interval and no verdict" in report.rows[1].sentence
    assert report.rows[1].half_width is None and report.rows[1].comparison.low is None
    report = built(runs.sweep(tmp_path / "t", {"mha": BASE, "mla": BASE}))
    assert report.rows[1].sentence == (
        "attention=mla is identical to attention=mha in all 5 seeds: every loss is equal, to the last digit."
    )


def test_more_seeds_than_anyone_has(runs, built, tmp_path):
    losses = {s: v + (0.01 if s % 2 else -0.0149) for s, v in BASE.items()}
    row = built(runs.sweep(tmp_path / "s", {"mha": BASE, "mla": losses})).rows[1]
    assert row.comparison.needed is None and "more than 200 would be needed" in row.short


def test_lower_perplexity_and_higher_accuracy_are_better(runs, built, tmp_path):
    s = runs.sweep(tmp_path / "s", {"mha": BASE, "mla": shifted(-0.1, 0.001)})
    for file in s.rglob("run.json"):
        record = json.loads(file.read_text())
        record["metrics"]["val_accuracy"] = 1 / record["metrics"]["val_loss"]
        file.write_text(json.dumps(record))
    for metric in ("val_loss", "val_perplexity", "val_bits_per_byte", "val_accuracy"):
        report = built(s, metric=metric)
        assert (report.rows[1].verdict, report.metric) == ("better", metric)


def test_which_way_is_better_and_the_unit_are_as_the_objective_measures(runs, built, tmp_path):
    s = runs.sweep(tmp_path / "s", {"mha": BASE, "mla": shifted(-0.1, 0.001)})
    for file in s.rglob("run.json"):
        record = json.loads(file.read_text())
        record["measures"] = {"score": "reward", "gap": "loss"}
        record["metrics"] |= dict.fromkeys(("val_score", "val_gap", "val_f1"), record["metrics"]["val_loss"])
        file.write_text(json.dumps(record))
    found = {metric: built(s, metric=metric) for metric in ("val_loss", "val_score", "val_gap", "val_f1")}
    assert [r.rows[1].verdict for r in found.values()] == ["better", "worse", "better", "worse"]
    assert {r.unit for r in found.values()} == {""}  # no likelihood, so no nats


def test_many_that_are_not_distinguishable_are_one_sentence(runs, built, tmp_path):
    from llmlab.report import table

    losses = {"mha": BASE} | {f"v{i}": shifted(0.001, 0.01, i) for i in range(6)}
    (sentence,) = table.sentences(built(runs.sweep(tmp_path / "s", losses)).tables[0])
    assert sentence[1].startswith("6 variants are not distinguishable from attention=mha with 5 seeds")


@pytest.mark.slow  # 240 run folders are written and read, 6 at a time, through the whole of collecting and judging
def test_forty_sweeps_of_a_against_a(runs, built, tmp_path):
    """Of 40 comparisons of a variant with itself under another name, 5 % are called: 2, and more than 6 in 1 of 300 cases."""
    chance, called = random.Random(11), 0
    for i in range(40):
        losses = {}
        for seed in (1, 2, 3):
            common = chance.gauss(2.3, 0.1)
            losses[seed] = [common + chance.gauss(0, 0.01) for _ in range(2)]
        pairs = {name: {s: v[k] for s, v in losses.items()} for k, name in enumerate(("a", "b"))}
        report = built(runs.sweep(tmp_path / str(i), pairs))
        assert report.rows[1].n == 3
        called += report.rows[1].verdict in ("better", "worse")
    assert called <= 6


# ---------------------------------------------------------------- above the table


def test_unequal_compute(runs, built, tmp_path):
    s = runs.sweep(tmp_path / "s", {"mha": BASE, "mla": BASE, "gqa": BASE})
    assert built(s).notices == []
    change(s, "attention=mla*", parameters__active=10_800, flops_per_token=66_000.0)
    change(s, "attention=gqa*", parameters__active=10_050, flops_per_token=60_590.0)  # less than 1 %
    (notice,) = built(s).notices
    assert notice == (
        "Equal tokens is not equal compute: against attention=mha, in active parameters and FLOPs per token, "
        "attention=mla +8.0 % and +10.0 %."
    )
    change(s, "attention=mla*", tokens_seen=round(12_800 / 1.1))
    first, second = built(s).notices
    assert first == "Equal compute is not equal tokens: against attention=mha, attention=mla saw 9.1 % fewer tokens."
    assert second.startswith("The total FLOPs agree, but against attention=mha")
    change(s, "attention=mla*", tokens_seen=25_600)
    assert (
        built(s)
        .notices[0]
        .startswith("The budgets differ: against attention=mha, attention=mla saw 100.0 % more tokens")
    )


def test_other_texts_are_refused(runs, built, tmp_path):
    s = runs.sweep(tmp_path / "s", {"mha": BASE, "mla": shifted(-1), "gqa": shifted(-1, 0.01)})
    change(s, "attention=mla*", data__fingerprint="e" * 64)
    report = built(s)
    assert words(report) == {"attention=mha": "baseline", "attention=gqa": "better", "attention=mla": "not comparable"}
    assert [[r.name for r in t.rows] for t in report.tables] == [["attention=mha", "attention=gqa"], ["attention=mla"]]
    assert "Not comparable with attention=mha, for the text is another one: attention=mla." in report.notices
    assert report.rows[2].comparison is None and report.rows[2].curve is None


def objectives(runs, folder, probed):
    """Runs of two objectives whose losses can't be compared. probed: {objective: {protocol: an accuracy a seed}}."""
    for name, loss in (("clm", 2.0), ("mlm", 9.0)):
        for seed in (1, 2, 3):
            home = folder / f"{name}{seed}"
            runs.make(home, loss + seed / 100, seed=seed, changes={"objective": {"_part_": name}})
            made = [
                {
                    **dict.fromkeys(("fingerprint", "data"), "texts"),
                    **dict(mode=mode, pool=pool, seq_len=16, test=0.25, accuracies=[values[seed - 1]], half=None),
                    **dict(accuracy=values[seed - 1], majority=0.1, bag_of_tokens=0.5),
                }
                for (mode, pool), values in probed.get(name, {}).items()
            ]
            if made:
                probes.add(home, made)


FROZEN = {("frozen", "mean"): [0.50, 0.52, 0.51]}


def test_objectives_are_compared_by_a_probe_that_all_have(runs, built, tmp_path):
    better = {("frozen", "mean"): [0.60, 0.61, 0.615], ("frozen", "first"): [0.3, 0.4, 0.5]}
    objectives(runs, tmp_path, {"clm": FROZEN, "mlm": better})
    report = built(tmp_path)
    assert report.metric == "probe texts, frozen mean" and report.unit == "accuracy" and report.higher_is_better
    assert len(report.tables) == 1 and report.tables[0].drawn is None
    assert words(report) == {"objective=clm": "baseline", "objective=mlm": "better"}
    assert any("(clm, mlm), and so do their losses: compared by probe texts, frozen mean." in n for n in report.notices)
    assert not any("loss" in n for n in report.tables[0].notices)
    names = [c.name for c in table.columns(report.tables[0])]
    assert (
        "probe accuracy" in names and "probe texts, frozen first" in names and "probe texts, frozen mean" not in names
    )
    assert built(tmp_path, metric="probe").metric == report.metric
    assert built(tmp_path, metric="val_loss").metric == "val_loss"
    narrow = [c.name for c in terminal.columns(report.tables[0], 80)]
    assert {"variant", "verdict", "probe accuracy"} <= set(narrow) and "probe texts, frozen first" not in narrow


def test_objectives_without_a_common_probe(runs, built, tmp_path):
    objectives(runs, tmp_path, {"clm": FROZEN})
    report = built(tmp_path)
    assert report.metric == "val_loss" and len(report.tables) == 2
    assert any("`llmlab probe run=" in n and "by one protocol" in n for n in report.notices)
    with pytest.raises(UserError, match="report.metric=probe: no completed run has it"):
        built(tmp_path, metric="probe")
    both = {**FROZEN, ("finetune", "mean"): [0.5, 0.6, 0.7]}
    objectives(runs, tmp_path, {"clm": both, "mlm": both})
    assert built(tmp_path).metric == "probe texts, frozen mean"
    with pytest.raises(
        UserError, match="all runs have 2 of them; name one: 'probe texts, frozen mean', 'probe texts, fine"
    ):
        built(tmp_path, metric="probe")


def test_another_validation_set_and_objective_are_refused(runs, built, tmp_path):
    runs.make(tmp_path / "a", 2.0)
    runs.make(tmp_path / "b", 1.0, changes={"train.validation_batches": 2})
    runs.make(tmp_path / "c", 1.0, changes={"objective": {"_part_": "mlm", "rate": 0.15}})
    reasons = [r.sentence for r in built(tmp_path, asked="objective=clm,train.validation_batches=null").rows]
    assert any("the validation set is another one" in (s or "") for s in reasons)
    assert any("objective=mlm has another loss than clm" in (s or "") for s in reasons)


def test_other_tokenizers_are_compared_in_bits_per_byte(runs, built, tmp_path):
    for kind, loss in (("char", 1.5), ("bpe", 3.0)):
        for seed in (1, 2, 3):
            folder = tmp_path / f"{kind}{seed}"
            runs.make(
                folder, loss + seed / 100, seed=seed, changes={"tokenizer.kind": kind}, overrides=(f"tokenizer={kind}",)
            )
            (folder / "tokenizer.json").write_text(kind)
    report = built(tmp_path)
    assert report.metric == "val_bits_per_byte" and "The tokenizers differ" in report.notices[0]
    assert report.rows[1].comparison.n == 3
    asked = built(tmp_path, metric="val_loss")
    assert asked.rows[1].verdict == "not comparable" and "per token" in asked.rows[1].sentence


def test_a_loss_of_whole_records_is_compared_whatever_the_tokenizer(runs, built, tmp_path):
    """A classifier from scratch against one that begins from a run, whose tokenizer comes with the weights."""
    labelled = {"fingerprint": "f" * 64, "vocabulary": 30, "reads": "labelled"}
    for kind, loss in (("char", 0.6), ("bpe", 0.4)):
        for seed in (1, 2, 3):
            changes = {"tokenizer.kind": kind, "objective": {"_part_": "classification"}}
            metrics = {"val_loss": loss + seed / 100, "val_accuracy": 1 - loss}
            folder = runs.make(
                tmp_path / f"{kind}{seed}", loss + seed / 100, seed=seed, changes=changes, data=labelled,
                overrides=(f"tokenizer={kind}",), metrics=metrics,
            )  # fmt: skip
            (folder / "tokenizer.json").write_text(kind)
    report = built(tmp_path)
    assert report.metric == "val_loss" and len(report.tables) == 1
    assert report.rows[1].comparison.n == 3 and report.rows[1].verdict in ("better", "worse")
    assert abs(report.rows[1].comparison.mean) == pytest.approx(0.2)


def test_answers_to_different_rewards_are_not_compared(runs, built, tmp_path):
    prompts = {"fingerprint": "f" * 64, "vocabulary": 30, "reads": "prompts"}
    for name, reward in (
        ("a", {"_part_": "contains", "field": "answer"}),
        ("b", {"_part_": "exact", "field": "answer"}),
        ("c", {"_part_": "contains", "field": "solution"}),
    ):
        changes = {"reward": reward, "objective": {"_part_": "reinforce"}}
        runs.make(tmp_path / name, -0.5, changes=changes, data=prompts)
    reasons = [r.sentence or "" for r in built(tmp_path, asked="reward=contains,reward.field=answer").rows]
    assert any("reward=exact reward.field=answer gives other rewards than reward=contains" in s for s in reasons)
    assert any("reward=contains reward.field=solution gives other rewards" in s for s in reasons)


def test_what_else_is_said(runs, built, tmp_path):
    s = runs.sweep(tmp_path / "s", {"mha": BASE, "mla": BASE})
    change(s, "attention=mla*", batch__seq_len=32, hardware__threads=8, versions__commit="abc", budget__steps=200)
    notices = " ".join(built(s).notices)
    for said in ("data.seq_len differs: attention=mha has 16, attention=mla has 32", "do not compare tokens/s", "2 commits",
                 "cut short of their budget by trainer.max_steps"):  # fmt: skip
        assert said in notices


@pytest.mark.parametrize(("base", "share"), [(2.0, "+10.0 %"), (-2.0, "+10.0 %")])
def test_a_share_has_the_sign_of_its_difference_where_a_loss_is_negative(base, share):
    """A negative reward is the loss of a run on prompts."""
    found = Comparison([1], [], [], [0.2], mean=0.2)
    assert f"+0.20 ({share})" in verdict.sentence("b", "a", found, "not distinguishable", base, 2)
