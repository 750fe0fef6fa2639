"""Records end to end: what a batch of them costs is what each costs alone, and a classifier learns, goes on and is measured."""

import json
import random

import numpy as np
import pytest
import torch
from small_runs import run
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from llmlab import registry
from llmlab.commands.eval import evaluate
from llmlab.commands.plan import main as plan
from llmlab.config import layout
from llmlab.config.compose import compose
from llmlab.data import collate, loader, stand_in
from llmlab.data.framing import Frame, Framing
from llmlab.data.packing import Packs
from llmlab.data.records import Records, RecordSamples
from llmlab.errors import UserError
from llmlab.model import build
from llmlab.plan import subject
from llmlab.slots import Loss, Vocabulary
from llmlab.sweep.plan import make_plan

SMALL = ["model.dim=16", "model.n_layers=2", "model.n_heads=2", "model.vocab_size=64", "data.seq_len=30"]
GOOD, BAD = ["good", "great", "fine", "lovely", "warm"], ["bad", "poor", "awful", "sad", "cold"]


class Translation:
    """The target of a pair after its source, next token by next token."""

    reads, collate, fixed_counts = "pairs", "pack", False

    def prepare(self, sample, rng):
        ids = np.concatenate([sample["source"], sample["target"]])
        asked = np.arange(1, len(ids)) >= len(sample["source"])
        return {"ids": ids[:-1], "labels": np.where(asked, ids[1:], collate.IGNORED)}

    def targets(self, prepared):
        return {"nll": int((prepared["labels"] != collate.IGNORED).sum())}

    def loss(self, model, batch):
        logits = model(batch).heads["tokens"]
        nll = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum")
        return Loss({"nll": (nll, (batch["labels"] != collate.IGNORED).sum())})


def records(kind, n=24, pieces=2, most=13, told=True):
    """Random records of two texts, with labels, in memory. told: with segments."""
    chance = np.random.default_rng(0)
    lengths = chance.integers(1, most, n * pieces)
    frames = Frame([1], [], [2], [[0], [0], [], [], [0]]), Frame([1], [2], [2], [[0], [0], [0], [1], [1]])
    held = Records(
        tokens=chance.integers(3, 64, lengths.sum()).astype(np.uint16),
        pieces=np.concatenate([[0], np.cumsum(lengths)]),
        starts=np.arange(n + 1) * pieces,
        names=np.tile(np.arange(pieces, dtype=np.uint8), n),
        called=("text", "text_b") if kind == "labelled" else ("source", "target"),
        labels=chance.integers(2, size=n) if kind == "labelled" else None,
    )
    return RecordSamples(held, kind, Framing(*frames, [], 2), 30, segments=told)


def model_of(*words):
    torch.manual_seed(0)
    model = build.build_model(layout.resolve(compose([*SMALL, *words])))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.3)
    return model.eval()


def alone(model, objective, samples):
    """The sum of the losses of records, each in a batch of its own without any padding."""
    total, rng = 0.0, np.random.default_rng(0)
    for sample in samples:
        prepared = objective.prepare(sample, rng)
        batch = {k: torch.from_numpy(np.asarray(v))[None] for k, v in prepared.items()}
        total += objective.loss(model, batch).terms["nll"][0].item()
    return total


CLASSIFIERS = {
    "bert": ("model=bert",),
    "roberta": ("model=roberta",),
    "xlnet": ("model=xlnet",),
    "llama3, looking back": ("model=llama3", "mask=causal", "head=scalar", "head.n_classes=2"),
    "averaged": ("model=modernbert", "head.pool=mean"),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
@torch.no_grad()
def test_a_padded_batch_costs_what_its_records_cost_alone(name):
    model = model_of(*CLASSIFIERS[name], "objective=classification")
    objective = registry.load("objective", "classification", {})(Vocabulary(64, {}), 30)
    told = model.spec.segments > 1
    samples = [records("labelled", told=told)[i] for i in range(8)]
    batch = collate.batch([objective.prepare(s, None) for s in samples], "pad", pad=5, most=30)
    assert batch["ids"].shape[1] in (24, 30) and not batch["valid"].all() and ("segments" in batch) == told
    loss = objective.loss(model, batch)
    assert loss.terms["nll"][0].item() == pytest.approx(alone(model, objective, samples), rel=1e-5)
    assert loss.terms["nll"][1] == 8 == loss.logs["accuracy"][1]


@pytest.mark.parametrize("family", ["llama3", "gpt2", "bloom"])
@torch.no_grad()
def test_packed_records_cost_what_they_cost_alone(family):
    model, objective, packs = model_of(f"model={family}"), Translation(), Packs(records("pairs"))
    rows = [packs[i] for i in range(4)]
    assert max(map(len, rows)) > 1
    prepared = [collate.prepare(objective, row, None) for row in rows]
    batch = collate.batch(prepared, "pack", pad=0, most=30)
    loss = objective.loss(model, batch)
    assert loss.terms["nll"][0].item() == pytest.approx(
        alone(model, objective, [r for row in rows for r in row]), rel=1e-5
    )
    assert objective.targets(prepared[0])["nll"] == sum(
        objective.targets(objective.prepare(r, None))["nll"] for r in rows[0]
    )


def test_what_is_not_of_a_token_can_not_be_packed():
    with pytest.raises(ValueError, match="labels is not a value for each token"):
        collate.joined([{"ids": np.zeros(3), "labels": np.int64(1)}])


CUTS = [(8, 1, 1), (4, 2, 1), (2, 2, 2), (1, 1, 8)]  # micro, ranks, accumulated


@pytest.mark.parametrize("kind", ["padded", "packed"])
@torch.no_grad()
def test_a_step_is_the_same_records_however_it_is_cut(kind):
    if kind == "padded":
        model = model_of("model=bert", "objective=classification")
        objective, samples = (
            registry.load("objective", "classification", {})(Vocabulary(64, {}), 30),
            records("labelled"),
        )
    else:
        model, objective, samples = model_of("model=llama3"), Translation(), Packs(records("pairs"))
    means = []
    for micro, world, accumulate in CUTS:
        total = 0.0
        for rank in range(world):
            how = {"rank": rank, "world": world, "accumulate": accumulate, "start_step": 1, "steps": 2}
            for batch in loader.train_loader(samples, objective, 3, 8, micro, **how):
                total += objective.loss(model, batch).terms["nll"][0].item() / int(batch["counts"]["nll"])
        means.append(total)
    assert means == pytest.approx([means[0]] * len(CUTS), rel=1e-5)
    one, two = (
        [b["ids"] for b in loader.train_loader(samples, objective, 3, 8, 4, accumulate=2, steps=2, num_workers=n)]
        for n in (0, 2)
    )
    assert len(one) == 4 and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_every_held_out_record_is_measured_once_on_any_number_of_ranks():
    objective = registry.load("objective", "classification", {})(Vocabulary(64, {}), 30)
    samples = records("labelled", n=11)
    for world in (1, 2, 3):
        seen = [b for r in range(world) for b in loader.validation_loader(samples, objective, 2, r, world)]
        own = [b for b in seen if "filler" not in b]
        assert sum(len(b["labels"]) for b in own) == 11
        assert sum(int(b["labels"].sum()) for b in own) == int(samples.records.labels.sum())


# ---------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """Labelled texts whose class their words tell, and texts alone."""
    folder = tmp_path_factory.mktemp("reviews")
    chance = random.Random(0)

    def text(words):
        return " ".join(chance.choice([*words, "film", "story"]) for _ in range(chance.randrange(4, 16)))

    rows = [{"text": text((GOOD, BAD)[i % 2]), "label": ("good", "bad")[i % 2]} for i in range(300)]
    (folder / "reviews.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    others = [f"{text((GOOD, BAD)[i % 2])},{('good', 'bad')[i % 2]}" for i in range(9)]
    (folder / "other.csv").write_text("\n".join(["said,as", *others]))
    (folder / "strange.jsonl").write_text('{"text": "good", "label": "neutral"}\n')
    (folder / "texts.txt").write_text(" ".join(r["text"] for r in rows))
    return folder


def words(reviews, *more):
    small = [
        "model=bert",
        "model.dim=32",
        "model.n_layers=1",
        "model.n_heads=2",
        "data.seq_len=20",
        "tokenizer.vocab_size=280",
    ]
    return [*small, "data=files", "train.sample=false", "optimizer.lr=5e-3", "train.batch_size=16", *more]


def classify(reviews, *more):
    return words(
        reviews, "objective=classification", f"data.path={reviews / 'reviews.jsonl'}", "budget.steps=40", *more
    )


@pytest.fixture(scope="module")
def classifier(reviews, tmp_path_factory, corpus):
    folder = tmp_path_factory.mktemp("runs") / "classifier"
    return folder, run(folder, *classify(reviews))


def test_a_classifier_is_learnt_from_labelled_lines(classifier):
    _, done = classifier
    assert done["metrics"]["val_accuracy"] > 0.95 and "val_perplexity" not in done["metrics"]
    assert done["data"]["reads"] == "labelled" and done["data"]["labels"] == ["bad", "good"]
    assert done["parts"]["heads.classes"] == "pooled" and done["data"]["documents"] == 300
    assert done["tokens_seen"] == 40 * 16 * round(done["tokens_seen"] / 640)


def test_it_is_measured_on_its_own_records_and_on_others(classifier, reviews, capsys):
    folder, done = classifier
    own = evaluate(str(folder))
    assert own["loss"] == pytest.approx(done["metrics"]["val_loss"], rel=1e-5)
    assert own["accuracy"] == done["metrics"]["val_accuracy"] and "perplexity" not in own
    names = {"text": "said", "label": "as"}
    other = evaluate(str(folder), data=str(reviews / "other.csv"), fields=names)
    assert other["targets"] == 9 and other["accuracy"] > 0.8
    with pytest.raises(UserError, match="strange.jsonl:1: the model has no class 'neutral'; it has bad, good"):
        evaluate(str(folder), data=str(reviews / "strange.jsonl"))


@pytest.mark.slow
def test_it_begins_from_a_masked_language_model(reviews, tmp_path, capsys):
    text = f"data.path={reviews / 'texts.txt'}"
    run(tmp_path / "mlm", *words(reviews, "objective=mlm_only", text, "budget.steps=2"))
    start = [
        w for w in classify(reviews, f"init_from={tmp_path / 'mlm'}", "trainer.max_steps=1") if "tokenizer" not in w
    ]
    capsys.readouterr()
    done = run(tmp_path / "run", *start)
    said = "init_from: of the heads classes is new and tokens of it is left out"
    assert f"note: {said}" in capsys.readouterr().out and said in done["notes"]
    assert done["tokenizer"]["from"] == "init_from"


@pytest.mark.slow
def test_it_begins_from_a_classifier_of_other_classes(classifier, reviews, tmp_path):
    rows = [json.loads(line) for line in (reviews / "reviews.jsonl").read_text().splitlines()]
    others = [{**r, "label": {"good": "a", "bad": "b"}[r["label"]]} for r in rows]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(r) + "\n" for r in others))
    start = [w for w in classify(reviews, f"init_from={classifier[0]}", "trainer.max_steps=1") if "tokenizer" not in w]
    done = run(tmp_path / "run", *start, f"data.path={tmp_path / 'r.jsonl'}")
    assert "init_from: its head was trained for other classes (bad, good)" in done["notes"]
    assert done["data"]["labels"] == ["a", "b"]


def test_a_plan_reads_no_records(reviews, capsys):
    made = subject.of_config(compose(classify(reviews, "heads.classes.n_classes=3")))
    assert made.cost.flops_per_token > 0 and made.training is not None
    assert any("records of 20 tokens each" in line for line in made.assumed)
    assert plan(classify(reviews)) in (0, None)
    assert "2 classes: how many there are, the data would tell" in " ".join(capsys.readouterr().out.split())


def test_another_number_of_classes_than_the_data_has_is_refused(reviews, tmp_path):
    with pytest.raises(UserError, match="heads.classes.n_classes=3, but the data has 2 classes; leave it out"):
        run(tmp_path / "run", *classify(reviews, "heads.classes.n_classes=3"))
    with pytest.raises(
        UserError, match=r"data=python_docs holds texts, but objective=classification reads labelled records"
    ):
        run(tmp_path / "run", "model=bert", "objective=classification")
    assert not (tmp_path / "run").exists()


def test_the_cost_of_a_classifier_is_that_of_its_forward_and_backward():
    words = ["model=bert", "objective=classification", "kernel=eager", *SMALL[:4], "data.seq_len=32"]
    made = subject.of_config(compose(words))
    tokens = np.random.default_rng(0).integers(50, size=(2, 33))
    batch = stand_in.batch(made.training.objective, tokens, np.random.default_rng(0))
    with FlopCounterMode(display=False) as counted:
        made.training.objective.loss(build.build_model(made.spec), batch).mean().backward()
    assert made.cost.flops_per_token == pytest.approx(counted.get_total_flops() / (2 * 32), rel=0.01)


def test_a_sweep_over_heads_is_one_over_the_role(reviews):
    plan = make_plan([*classify(reviews), "head=pooled,scalar"])
    assert [next(w for w in p.overrides if "head@" in w) for p in plan.points] == [
        "head@heads.classes=pooled",
        "head@heads.classes=scalar",
    ]
