"""Optimizers and schedules."""

import math

import pytest
import torch
from parts import names, part, randn
from torch import nn

from llmlab.slots import Linear


def params():
    shapes = {
        "table": ((5, 4), "embed"),
        "places": ((6, 4), "position"),
        "q": ((4, 4), "q"),
        "experts": ((3, 4, 4), "ffn_in"),
        "norm": ((4,), "norm"),
        "bias": ((4,), "bias"),
        "experts_bias": ((3, 4), "bias"),
        "sink": ((2,), "other"),
    }
    return [(name, nn.Parameter(randn(*shape, seed=i)), role) for i, (name, (shape, role)) in enumerate(shapes.items())]


@pytest.mark.parametrize(("decay", "tables"), [("matrices", True), ("no_embeddings", False)])
def test_decay_goes_by_role_and_dimensions(decay, tables):
    optimizer = part("optimizer", "adamw", decay=decay, weight_decay=0.3)().build(given := params())
    decayed = {
        name for g in optimizer.param_groups if g["weight_decay"] for n in g["params"] for name, p, _ in given if p is n
    }
    assert decayed == {"q", "experts"} | ({"table", "places"} if tables else set())
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(given)
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.3, 0.0}


def test_adamw_steps_are_the_papers():
    part_ = part("optimizer", "adamw", lr=0.01, beta1=0.8, beta2=0.9, eps=1e-6, weight_decay=0.2)()
    given = params()
    start = {name: p.detach().double().clone() for name, p, _ in given}
    optimizer = part_.build(given)
    m, v = ({name: torch.zeros_like(p) for name, p in start.items()} for _ in range(2))
    for step in range(1, 4):
        for i, (name, p, role) in enumerate(given):
            p.grad = randn(*p.shape, seed=100 * step + i)
            g, w = p.grad.double(), start[name]
            m[name] = 0.8 * m[name] + 0.2 * g
            v[name] = 0.9 * v[name] + 0.1 * g**2
            decay = 0.2 if p.dim() > 1 and role != "bias" else 0.0
            update = m[name] / (1 - 0.8**step) / ((v[name] / (1 - 0.9**step)).sqrt() + 1e-6)
            start[name] = w - 0.01 * decay * w - 0.01 * update
        optimizer.step()
    for name, p, _ in given:
        torch.testing.assert_close(p.detach().double(), start[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", names("optimizer"))
def test_every_optimizer_lowers_a_loss_and_has_a_rate(name):
    made, linear = part("optimizer", name)(), Linear(4, 1, role="head")
    optimizer = made.build([("weight", linear.weight, "head")])
    x, y, losses = randn(32, 4), randn(32, 1, seed=2), []
    for _ in range(20):
        loss = (linear(x) - y).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] and optimizer.param_groups[0]["lr"] == made.lr


def nanogpt(step, total, warmup, floor):
    """The learning rate of nanoGPT's train.py as a factor."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if step > total:
        return floor
    return floor + 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) * (1 - floor)


@pytest.mark.parametrize(
    ("options", "warmup"), [({"warmup_steps": 10}, 10), ({"warmup_share": 0.2}, 20), ({"warmup_steps": 0}, 0), ({}, 5)]
)
def test_cosine_closed_form(options, warmup):
    schedule = part("schedule", "cosine", **options)()
    for step in range(131):
        assert schedule.factor(step, 100) == pytest.approx(nanogpt(step, 100, warmup, 0.1))
    assert schedule.factor(100, 100) == 0.1


@pytest.mark.parametrize("name", names("schedule"))
def test_every_schedule_stays_within_bounds_at_any_length(name):
    for total in (1, 2, 3, 50):
        factors = [part("schedule", name)().factor(step, total) for step in range(total + 3)]
        assert all(0 < f <= 1 for f in factors)


def test_a_warmup_longer_than_the_run_only_warms():
    schedule = part("schedule", "cosine", warmup_steps=10)()
    assert [schedule.factor(s, 5) for s in range(5)] == pytest.approx([(s + 1) / 11 for s in range(5)])


def test_a_share_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"schedule\.warmup_share and schedule\.floor"):
        part("schedule", "cosine", warmup_share=3)()
