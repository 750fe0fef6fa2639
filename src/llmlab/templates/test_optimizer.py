"""my_optimizer with a model that learns, and against its formula."""

import pytest
import torch
from torch import nn

from llmlab import registry
from llmlab.testing import learns


def test_a_model_learns_with_it():
    learns("optimizer=my_optimizer", "optimizer.lr=3e-3")


def test_formula():
    options = {"lr": 0.1, "beta1": 0.9, "beta2": 0.8, "weight_decay": 0.5}
    matrix, bias = nn.Parameter(torch.tensor([[1.0]])), nn.Parameter(torch.tensor([1.0]))
    made = registry.load("optimizer", "my_optimizer", options)()
    optimizer = made.build([("w", matrix, "q"), ("b", bias, "bias")])
    p, q, m = 1.0, 1.0, 0.0
    for g in (2.0, -0.1, -3.0):
        matrix.grad, bias.grad = torch.tensor([[g]]), torch.tensor([g])
        optimizer.step()
        sign = 1.0 if 0.9 * m + 0.1 * g > 0 else -1.0
        p, q, m = p - 0.1 * (sign + 0.5 * p), q - 0.1 * sign, 0.8 * m + 0.2 * g
        assert (matrix.item(), bias.item()) == (pytest.approx(p), pytest.approx(q))


def test_the_rate_can_be_scheduled():
    made = registry.load("optimizer", "my_optimizer", {})()
    assert made.build([("w", nn.Parameter(torch.ones(2, 2)), "q")]).param_groups[0]["lr"] == made.lr
