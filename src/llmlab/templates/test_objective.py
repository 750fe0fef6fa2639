"""my_objective with a model that knows nothing, whose loss is known, and with ones that learn."""

import math

import numpy as np
import torch

from llmlab import registry
from llmlab.slots import Output, Vocabulary
from llmlab.testing import learns


def objective(**options: float):
    return registry.load("objective", "my_objective", options)(Vocabulary(10, {}), 6)


def test_a_model_learns_with_it():
    learns("objective=my_objective")


def test_a_mixture_of_experts_learns_with_it():
    # A loss that leaves out the auxiliary output trains no router.
    learns("model=qwen_moe", "objective=my_objective")


def test_each_token_is_predicted_from_those_before_it():
    prepared = objective().prepare({"tokens": np.arange(7)}, np.random.default_rng(0))
    assert prepared["ids"].tolist() == [0, 1, 2, 3, 4, 5] and prepared["labels"].tolist() == [1, 2, 3, 4, 5, 6]
    assert objective().targets(prepared) == {"nll": 6, "z": 6}


def test_even_logits_lose_the_log_of_their_number():
    def model(batch: dict[str, torch.Tensor], heads: dict[str, torch.Tensor | None]) -> Output:
        return Output(torch.zeros(2, 6, 4), {"tokens": torch.zeros(2, 6, 10)}, None)

    found = objective(z=0.5).loss(model, {"labels": torch.zeros(2, 6, dtype=torch.long)})
    assert {name: int(count) for name, count in found.counts.items()} == {"nll": 12, "z": 12}
    # Even logits: the cross-entropy is ln V, and so is the logarithm of the partition.
    torch.testing.assert_close(found.mean(), torch.tensor(math.log(10) + 0.5 * math.log(10) ** 2))
    torch.testing.assert_close(found.terms["nll"][0] / 12, torch.tensor(math.log(10)))
