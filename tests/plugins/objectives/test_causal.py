"""Objectives that predict the next token: their losses against torch's, and what they refuse."""

import numpy as np
import pytest
import torch
from parts import part, randn
from torch.nn import functional as F

from llmlab.slots import Output, Vocabulary

VOCABULARY = Vocabulary(20, {"eos": 0, "prefix": 17, "suffix": 18, "middle": 19})


def objective(name, seq_len=16, **options):
    return part("objective", name, **options)(VOCABULARY, seq_len)


def model_of(logits):
    def model(batch, *, heads):
        where = heads["tokens"]
        return Output(torch.zeros(1), {"tokens": logits if where is None else logits[where]}, None)

    return model


def test_smoothing_and_z_loss_are_torchs_and_leave_the_likelihood_alone():
    logits, labels = randn(3, 5, 20).requires_grad_(), torch.arange(15).view(3, 5)
    labels[0, 2] = -100
    made = objective("clm", z_loss=0.01, label_smoothing=0.1)
    loss = made.loss(model_of(logits), {"labels": labels})
    rows, own = logits.flatten(0, 1), labels.flatten()
    log_z = rows[own >= 0].logsumexp(-1)
    want = F.cross_entropy(rows, own, label_smoothing=0.1) + 0.01 * log_z.square().mean()
    got, slope = loss.mean(), torch.autograd.grad(want, logits, retain_graph=True)[0]
    assert got.item() == pytest.approx(want.item(), rel=1e-6)
    assert torch.allclose(torch.autograd.grad(got, logits)[0], slope, atol=1e-7)
    plain = objective("clm").loss(model_of(logits), {"labels": labels})
    assert torch.equal(loss.terms["nll"][0], plain.terms["nll"][0]) and plain.terms.keys() == {"nll"}


@pytest.mark.parametrize("name", ["clm", "prefix_lm"])
def test_a_batch_without_targets_gives_nothing_and_no_gradient(name):
    logits = randn(1, 4, 20).requires_grad_()
    made = objective(name, **({"z_loss": 0.1, "label_smoothing": 0.1} if name == "clm" else {}))
    mean = made.loss(model_of(logits), {"labels": torch.full((1, 4), -100)}).mean()
    assert mean.item() == 0.0
    assert not torch.autograd.grad(mean, logits)[0].any()


def test_a_prefix_and_its_targets_make_the_window():
    made, rng = objective("prefix_lm"), np.random.default_rng(0)
    tokens, given = np.arange(1, 18), np.zeros(17, bool)
    given[3] = True
    seen = set()
    for _ in range(200):
        prepared = made.prepare({"tokens": tokens, "given": given, "documents": tokens // 4}, rng)
        n = int(prepared["prefix_len"])
        seen.add(n)
        want = [t + 1 if t >= n and t + 1 != 4 else -100 for t in range(1, 17)]
        assert prepared["labels"].tolist() == want and prepared["ids"].tolist() == [*range(1, 17)]
        assert made.targets(prepared) == {"nll": sum(t >= 0 for t in want)}
    assert seen == set(range(1, 17))
