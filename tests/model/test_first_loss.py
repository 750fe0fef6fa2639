"""A model that knows nothing has the loss ln V: what a tied table is filled with must suit the head that reads it."""

import math

import pytest
import torch
from families import FAMILIES, QUICK, batch, build, mostly_slow, tiny
from torch.nn import functional as F

BY_WIDTH = (
    "bert",
    "roberta",
    "spanbert",
    "distilbert",
    "mpnet",
    "deberta_v3",
    "bert_generation",
    "xlnet",
    "bart",
    "pegasus",
)
TIED = ("model.tie_embeddings=true",)
CASES = [(f,) for f in FAMILIES]
CASES += [("llama3", *TIED), ("llama3", "init=t5"), ("llama3", "init=t5", *TIED), ("t5", "model.logit_scale=null")]
CASES += [("t5", "embedding=scaled"), ("gpt2", "init=t5", "embedding=scaled")]


@pytest.mark.parametrize("case", mostly_slow(CASES, [c for c in CASES if c[0] in QUICK]), ids="-".join)
def test_the_first_loss_is_ln_v(case):
    # Those whose deviation goes by the width have a larger one in a narrow model.
    by_width = ("init.std=0.02",) if case[0] in BY_WIDTH else ()
    model = build(*tiny(*case, "model.dim=64", "model.vocab_size=256", *by_width), wake=False)
    data = batch(model, 24, 4)
    labels = torch.randint(0, 256, data["ids"].shape, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        logits = model(data).heads["tokens"]
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten()).item()
    assert loss == pytest.approx(math.log(256), abs=0.8 if "t5" in "".join(case) else 0.1)
