"""Top-k, top-p and temperature against their definitions, a token at a time; draws against the distribution."""

import math

import pytest
import torch

from llmlab.decoding.sampling import Sampling
from llmlab.errors import UserError


def by_definition(logits, temperature, top_k, top_p):
    """Probabilities of one row as a list."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    if top_k is not None:
        order = order[:top_k]
    weight = {i: math.exp((logits[i] - logits[order[0]]) / temperature) for i in order}
    total = sum(weight.values())
    if top_p is not None:
        kept, mass = [], 0.0
        for i in order:
            if mass >= top_p:
                break
            kept.append(i)
            mass += weight[i] / total
        weight = {i: weight[i] for i in kept}
        total = sum(weight.values())
    return [weight.get(i, 0.0) / total for i in range(len(logits))]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("top_k", [None, 1, 4, 99])
@pytest.mark.parametrize("top_p", [None, 0.05, 0.6, 0.95, 1.0])
def test_distribution(temperature, top_k, top_p):
    logits = torch.randn(5, 23, generator=torch.Generator().manual_seed(0)) * 2
    got = Sampling(temperature, top_k, top_p).distribution(logits)
    want = [by_definition(row, temperature, top_k, top_p if top_p != 1.0 else None) for row in logits.tolist()]
    torch.testing.assert_close(got, torch.tensor(want), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(got.sum(-1), torch.ones(5))


def test_greedy():
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, -1.0, 0.5]])
    assert Sampling(0).distribution(logits).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert Sampling(0).draw(logits, torch.Generator()).tolist() == [1, 0]


def test_equal_logits_still_keep_only_k():
    p = Sampling(top_k=2).distribution(torch.zeros(1, 6))
    assert (p > 0).sum() == 2


def test_a_tiny_temperature_is_greedy():
    logits = torch.tensor([[1.0, 1.5, -2.0]])
    for temperature in (1e-3, 1e-30, 1e-42):
        torch.testing.assert_close(Sampling(temperature).distribution(logits), torch.tensor([[0.0, 1.0, 0.0]]))


def test_draws_follow_the_distribution():
    logits = torch.randn(1, 8, generator=torch.Generator().manual_seed(1))
    sampling = Sampling(0.8, 5, 0.9)
    n = 20000
    drawn = sampling.draw(logits.expand(n, -1), torch.Generator().manual_seed(2))
    share = torch.bincount(drawn, minlength=8) / n
    p = sampling.distribution(logits)[0]
    assert (share[p == 0] == 0).all()
    assert ((share - p).abs() < 4 * (p * (1 - p) / n).sqrt() + 1e-9).all()


def test_a_half_precision_row_is_weighed_in_float32():
    logits = torch.randn(2, 50).to(torch.bfloat16)
    assert Sampling().distribution(logits).dtype == torch.float32


@pytest.mark.parametrize(
    ("how", "name"),
    [({"temperature": -0.1}, "temperature=-0.1"), ({"top_k": 0}, "top_k=0"), ({"top_p": 0.0}, "top_p=0.0"),
     ({"top_p": 1.1}, "top_p=1.1"), ({"temperature": float("nan")}, "temperature=nan")],
)  # fmt: skip
def test_settings_out_of_range(how, name):
    with pytest.raises(UserError, match=name):
        Sampling(**how)
