"""In-batch negatives of a real run: on two ranks as on one, and what is said where a batch is cut."""

import json
import os
import random
import subprocess
import sys

import pytest
import torch
from small_runs import run
from test_gradients import SCRIPT, script

from llmlab.config import layout
from llmlab.config.compose import compose
from llmlab.errors import UserError
from llmlab.runs import record

SMALL = [
    "tokenizer=char",
    "data.seq_len=16",
    "model.dim=16",
    "model.n_layers=1",
    "model.n_heads=2",
    "train.batch_size=8",
]
SMALL += ["model=bert", "objective=contrastive", "budget.steps=2", "train.validation_batches=1", "train.sample=false"]


@pytest.fixture(scope="module")
def similar(corpus, tmp_path_factory):
    """Words for a run on records of two similar texts, some with one that is not."""
    chance = random.Random(0)
    text = lambda: "".join(chance.choice("abcdef") for _ in range(chance.randint(3, 12)))  # noqa: E731
    rows = [{"text": text(), "positive": text(), **({"negative": text()} if i % 3 == 0 else {})} for i in range(40)]
    file = tmp_path_factory.mktemp("similar") / "similar.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [*SMALL, "data=files", f"data.path={file}", "objective.positives=pairs", "objective.pool=mean"]


@pytest.mark.slow  # two processes that import Lightning
def test_two_ranks_have_the_gradient_of_one(similar, tmp_path):
    one, out = script.gradients(similar, tmp_path / "one"), tmp_path / "two.pt"
    ranks = ["strategy=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(out), *similar, *ranks],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert out.exists(), done.stderr
    two, largest = torch.load(out, weights_only=True), max(float(g.abs().max()) for g in one.values())
    assert one.keys() == two.keys() and largest > 1e-3
    assert max(float((two[n] - one[n]).abs().max()) for n in one) < 1e-6 * largest


def test_it_is_said_that_a_batch_is_cut_and_that_nothing_is_dropped(tiny, tmp_path):
    words = [*tiny, "model=bert", "objective=contrastive", "budget.steps=1", "train.micro_batch_size=4"]
    run(tmp_path / "run", *words)
    notes = " ".join(record.read(tmp_path / "run")["notes"])
    assert "compares the samples of a micro-batch, 4 of train.batch_size=8, over all ranks" in notes
    assert "but there is none; set model.dropout=0.1" in notes


def test_pairs_are_alike_or_not():
    composed = compose(["model=bert", "objective=contrastive_margin", "model.dim=16", "model.n_layers=1"])
    with pytest.raises(UserError, match="objective=contrastive_margin reads 2 classes, but the data has 3"):
        layout.with_vocabulary(composed, 300, 3)
    assert layout.with_vocabulary(composed, 300, 2) == layout.with_vocabulary(composed, 300)
