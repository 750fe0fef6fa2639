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
        assert all(0 <= f <= 1 for f in factors) and all(factors[:total]), "a step that is taken has a rate"


@pytest.mark.parametrize(("warmup", "total"), [(0, 20), (4, 20), (19, 20), (3, 1)])
def test_constant_and_linear_closed_forms(warmup, total):
    """BERT's own: polynomial decay of power 1 over all steps is another line; here it begins where the warm-up ends."""
    constant = part("schedule", "constant", warmup_steps=warmup)()
    line = part("schedule", "linear", warmup_steps=warmup, floor=0.2)()
    for step in range(total + 2):
        warm = min(1.0, (step + 1) / (warmup + 1))
        assert constant.factor(step, total) == pytest.approx(warm)
        down = 0.2 + 0.8 * min(1.0, max(0.0, 1 - (step - warmup) / max(1, total - warmup)))
        assert line.factor(step, total) == pytest.approx(warm if step < warmup else down)
    if warmup < total:
        assert part("schedule", "linear", warmup_steps=warmup)().factor(total, total) == 0


def test_inverse_sqrt_is_the_transformers_and_t5s():
    """d^-0.5 min(s^-0.5, s w^-1.5) over its value at s = w, and 1/sqrt(max(s, w)) over its value at s = 1; s from 1."""
    first = part("schedule", "inverse_sqrt", warmup_steps=8)()
    t5 = part("schedule", "inverse_sqrt", warmup_share=0.4, warm="flat")()
    for s in range(1, 40):
        assert first.factor(s - 1, 20) == pytest.approx(min(s**-0.5, s * 8**-1.5) / 8**-0.5)
        assert t5.factor(s - 1, 20) == pytest.approx(max(s, 8) ** -0.5 / 8**-0.5)


SHAPES = {
    "linear": lambda t: 0.1 + 0.9 * (1 - t),
    "cosine": lambda t: 0.1 + 0.45 * (1 + math.cos(math.pi * t)),
    "sqrt": lambda t: 0.1 + 0.9 * (1 - t**0.5),
    "exponential": lambda t: math.exp(t * math.log(0.1)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_wsd_closed_form(shape):
    """100 steps: 10 of warm-up, 60 of plateau, 20 of decay, 10 at the floor."""
    how = {"warmup_share": 0.1, "decay_share": 0.2, "hold_share": 0.1, "shape": shape, "floor": 0.1}
    schedule = part("schedule", "wsd", **how)()
    for step in range(110):
        if step < 70:
            want = min(1.0, (step + 1) / 11)
        else:
            want = SHAPES[shape]((step - 70) / 20) if step < 90 else 0.1
        assert schedule.factor(step, 100) == pytest.approx(want), step


def test_wsd_shares_that_can_not_be():
    with pytest.raises(ValueError, match=r"schedule\.decay_share=0\.8 and hold_share=0\.3 must make at most 1"):
        part("schedule", "wsd", decay_share=0.8, hold_share=0.3)()
    with pytest.raises(ValueError, match=r"schedule\.floor=0 can't be reached exponentially"):
        part("schedule", "wsd", floor=0.0)()


def test_a_warmup_longer_than_the_run_only_warms():
    schedule = part("schedule", "cosine", warmup_steps=10)()
    assert [schedule.factor(s, 5) for s in range(5)] == pytest.approx([(s + 1) / 11 for s in range(5)])


def test_a_share_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"schedule\.warmup_share and schedule\.floor"):
        part("schedule", "cosine", warmup_share=3)()


def test_stairs():
    """Full until 80 % of the budget, 0.316 of it until 90 %, 0.1 from there on."""
    schedule = part("schedule", "multistep", warmup_steps=4)()
    assert [schedule.factor(s, 200) for s in (0, 3, 4, 159)] == pytest.approx([0.2, 0.8, 1, 1])
    assert [schedule.factor(s, 200) for s in (160, 179)] == pytest.approx([0.316] * 2)
    assert [schedule.factor(s, 200) for s in (180, 199, 200)] == pytest.approx([0.316**2] * 3)
    for wrong, said in (
        ({"at": (0.9, 0.8)}, "schedule.at="),
        ({"at": (1.2,)}, "schedule.at="),
        ({"by": 0.0}, "schedule.by=0.0"),
        ({"warmup_share": 2.0}, "schedule.warmup_share=2.0"),
    ):
        with pytest.raises(ValueError, match=said):
            part("schedule", "multistep", **wrong)()


@pytest.mark.parametrize(
    ("dtypes", "devices", "fused"),
    [
        ([torch.float32, torch.bfloat16], ["cpu", "cpu"], True),
        ([torch.float32, torch.float32], ["cpu", "meta"], False),
        ([torch.float32, torch.float32], ["meta", "meta"], False),
        ([torch.float32, torch.complex64], ["cpu", "cpu"], False),
    ],
)
def test_adamw_is_fused_where_torch_can(dtypes, devices, fused):
    made = [
        (f"{i}", nn.Parameter(torch.zeros(2, 2, dtype=dtype, device=device)), "q")
        for i, (dtype, device) in enumerate(zip(dtypes, devices, strict=True))
    ]
    optimizer = part("optimizer", "adamw")().build(made)
    assert optimizer.defaults["fused"] is fused
