"""Accumulated micro-batches: a step is of all its targets however it is cut, and is clipped once."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from llmlab.slots import Loss
from llmlab.training.feeds import Feed
from llmlab.training.module import Offline
from llmlab.training.strategies.portable import ByPath


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
        names=(), add=lambda *unused: None, close=lambda norm: closed.append(norm.item()), open=False, widen=len
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
