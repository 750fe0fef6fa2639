"""What is said of a batch of in-batch negatives that is cut."""

import pytest
from small_runs import run

from llmlab.config import layout
from llmlab.config.compose import compose
from llmlab.errors import UserError
from llmlab.runs import record


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
