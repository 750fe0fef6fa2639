"""Clipping by the norm, in closed form and against PyTorch's; and a step of several micro-batches, clipped."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from llmlab.slots import Loss
from llmlab.training.clipping import clip_by_norm
from llmlab.training.feeds import Feed
from llmlab.training.module import Offline
from llmlab.training.strategies.portable import ByPath


@pytest.mark.parametrize("limit", [None, 0.5, 1000.0])
def test_clipping_is_torchs(limit):
    torch.manual_seed(0)
    ours, theirs = ([torch.nn.Parameter(torch.zeros(3, 4)), torch.nn.Parameter(torch.zeros(7))] for _ in range(2))
    for a, b in zip(ours, theirs, strict=True):
        a.grad = torch.randn(a.shape)
        b.grad = a.grad.clone()
    norm = clip_by_norm(ours, limit)
    expected = torch.nn.utils.clip_grad_norm_(theirs, math.inf if limit is None else limit)
    torch.testing.assert_close(norm, expected)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def with_gradients(*gradients, dtype=torch.float32):
    parameters = [nn.Parameter(torch.zeros(3, dtype=dtype)) for _ in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = None if gradient is None else torch.tensor(gradient, dtype=dtype)
    return parameters


@pytest.mark.parametrize(("limit", "factor"), [(None, 1), (26.0, 1), (13.0, 1), (6.5, 1 / 2), (1.0, 1 / 13)])
def test_the_norm_is_of_all_parameters_and_all_are_scaled_alike(limit, factor):
    """3, -4 and 12: the norm is 13, whatever tensors they are in, and those without a gradient count for nothing."""
    parameters = with_gradients([3.0, 0.0, 0.0], None, [0.0, -4.0, 12.0])
    norm = clip_by_norm(parameters, limit)
    assert norm.item() == 13 and norm.dtype == torch.float32 and norm.shape == ()
    scaled = [p.grad.tolist() for p in parameters if p.grad is not None]
    want = [[3 * factor, 0, 0], [0, -4 * factor, 12 * factor]]
    assert parameters[1].grad is None
    for one, other in zip(scaled, want, strict=True):
        assert one == (other if factor == 1 and limit != 13 else pytest.approx(other, rel=1e-6))
    if factor < 1:
        assert clip_by_norm(parameters, None).item() == pytest.approx(limit, rel=1e-6)


def test_nothing_has_a_gradient():
    assert clip_by_norm(with_gradients(None, None), 1.0).item() == 0


@pytest.mark.parametrize("wrong", [math.inf, -math.inf, math.nan])
def test_a_gradient_that_is_no_number_is_seen_in_the_norm(wrong):
    """The guard names the step by it (test_guard)."""
    assert not math.isfinite(clip_by_norm(with_gradients([3.0, 4.0, 0.0], [wrong, 0.0, 1.0]), 1.0))


def test_small_gradients_in_bfloat16_are_added_up_in_float32():
    parameters = with_gradients(*[[1.0, 0.0, 0.0]] * 1000, dtype=torch.bfloat16)
    assert clip_by_norm(parameters, 1.0).item() == pytest.approx(1000**0.5, rel=1e-5)
    assert parameters[0].grad.dtype == torch.bfloat16
    assert parameters[0].grad[0].item() == pytest.approx(1000**-0.5, rel=4e-3)


def accumulated(cuts, clip, devices=1):
    """(gradient, norm before) of a step on the targets 1..6, cut into micro-batches: squared errors of a number w = 0 as one
    term, and the weighted sum of 2 w over every other target as another."""
    w, closed = nn.Parameter(torch.zeros(())), []
    made = Offline(None, None, None, None, Feed(), seed=0, horizon=1, clip=clip)
    made.model = SimpleNamespace()
    strategy = SimpleNamespace(data_rank=0, data_world=devices, scaler=None)
    strategy.clip = lambda optimizer, limit: ByPath.clip(strategy, optimizer, limit)
    n = len(cuts)
    made.trainer = SimpleNamespace(global_step=0, accumulate_grad_batches=n // devices, strategy=strategy)
    made.step_metrics = SimpleNamespace(
        names=(), add=lambda *unused: None, close=lambda norm: closed.append(norm.item()), open=False
    )

    def loss(model, batch):
        values = batch["values"]
        odd = values[values % 2 == 1]
        terms = {
            "square": (((w - values) ** 2).sum(), torch.tensor(len(values))),
            "line": ((2 * w * odd).sum(), torch.tensor(len(odd))),
        }
        return Loss(terms, weights={"line": 0.25})

    made.objective = SimpleNamespace(loss=loss)
    counts = {"square": torch.tensor(6), "line": torch.tensor(3)}
    for cut in cuts:
        values = torch.tensor(cut, dtype=torch.float32)
        (
            made.training_step({"values": values, "counts": counts}, 0) / n
        ).backward()  # Lightning's and the strategy's mean
    optimizer = torch.optim.SGD([w], lr=0.5)
    made.configure_gradient_clipping(optimizer)
    assert made.lr == 0.5
    return w.grad.item(), closed[0]


@pytest.mark.parametrize(
    "cuts", [[[1, 2, 3, 4, 5, 6]], [[1, 2, 3], [4, 5, 6]], [[1, 2], [3, 4], [5, 6]], [[1], [2, 4, 6], [3, 5], []]]
)
def test_a_step_is_of_all_targets_however_it_is_cut(cuts):
    """-2 x 21 / 6 + 0.25 x 2 x 9 / 3 = -5.5; clipped to 2, of a norm of 5.5."""
    assert accumulated(cuts, None) == pytest.approx((-5.5, 5.5), rel=1e-6)
    assert accumulated(cuts, 2.0) == pytest.approx((-2.0, 5.5), rel=1e-6)
    assert accumulated(cuts, 6.0) == pytest.approx((-5.5, 5.5), rel=1e-6)
    if len(cuts) % 2 == 0:
        assert accumulated(cuts, 2.0, devices=2) == pytest.approx((-2.0, 5.5), rel=1e-6)
