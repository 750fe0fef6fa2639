"""my_moe within a model; the best experts, weights that sum to 1, and no loss from padding."""

import torch

from llmlab import registry
from llmlab.testing import SIZES, learns


def router(**options: int):
    made = registry.load("moe", "my_moe", options)(SIZES)
    torch.nn.init.normal_(made.gate.weight)
    return made


def test_a_mixture_of_experts_learns_with_it():
    learns("model=qwen_moe", "moe=my_moe")


def test_the_best_experts_are_chosen_and_weigh_1_together():
    made, x = router(), torch.randn(7, SIZES.dim)
    weights, experts, _ = made(x, None)
    torch.testing.assert_close(weights.sum(-1), torch.ones(7))
    assert torch.equal(experts[:, 0], (x @ made.gate.weight.T).argmax(-1))
    assert (experts[:, 0] != experts[:, 1]).all()


def test_padding_counts_in_no_loss():
    made, x = router(), torch.randn(6, SIZES.dim)
    alone = made(x[:4], None).loss
    padded = made(x, torch.tensor([True] * 4 + [False] * 2)).loss
    torch.testing.assert_close(alone, padded)


def test_even_routing_has_the_least_loss():
    made = router()
    torch.nn.init.zeros_(made.gate.weight)
    # E experts with 1/E of the visits and of the probability each: E (E 1/E 1/E) = 1, times the coefficient.
    torch.testing.assert_close(made(torch.randn(5, SIZES.dim), None).loss, torch.tensor(SIZES.moe.balance))
