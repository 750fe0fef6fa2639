"""Objectives that predict the next token: their losses against torch's, and what they refuse."""

import numpy as np
import pytest
import torch
from parts import part, randn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from llmlab.config.compose import compose
from llmlab.data import stand_in
from llmlab.model import build
from llmlab.slots import Output, Vocabulary
from llmlab.training import companions, cost

FIM = {"fim_prefix": 17, "fim_suffix": 18, "fim_middle": 19}
VOCABULARY = Vocabulary(20, {"eos": 0, "mask": 16, **FIM})


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


@pytest.mark.parametrize(
    ("name", "options"), [("prefix_lm", {}), ("fim", {"rate": 1.0}), ("masked_diffusion", {}), ("mtp", {"depth": 2})]
)
def test_the_cost_of_a_step_is_torchs(name, options):
    words = [f"objective={name}", *(f"objective.{k}={v}" for k, v in options.items())]
    sizes = ["model.dim=32", "model.n_heads=2", "model.n_layers=2", "model.vocab_size=20", "kernel=eager"]
    composed, made = compose([*words, *sizes]), objective(name, **options)
    models = {"model": build.build_model(composed.spec)}
    for role, companion in companions.resolve(composed, models["model"], None).items():
        models[role] = companion.assemble(models["model"])
        build.materialise(models[role])
        companion.fill(models[role], 1)
    samples = stand_in.StandIns(made, 1, 16, 16)
    batch = stand_in.collated(made, [made.prepare(samples[0], np.random.default_rng(0))], 16)
    model, *modules = models.values()
    with FlopCounterMode(display=False) as counter:
        made.loss(model, batch, **dict(zip([*models][1:], modules, strict=True))).mean().backward()
    told = cost.estimate(models, made, samples)
    assert told.dense * 16 == pytest.approx(counter.get_total_flops(), rel=0.01)
    if name == "mtp":  # what shares a table with the model has no table, nor a head
        assert not [n for n, _ in modules[0].named_parameters() if "table" in n or n.startswith("heads")]
        assert len(modules) == 2 and len(modules[1].all_stacks()[0].layers) == 1
