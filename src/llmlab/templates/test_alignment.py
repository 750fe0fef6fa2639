"""my_alignment with scores that are even, whose loss is known."""

import math

import numpy as np
import pytest
import torch

from llmlab import registry
from llmlab.data import collate
from llmlab.slots import Aux, Output, Vocabulary


def test_even_scores_have_a_loss_that_is_known():
    method = registry.load("alignment", "my_alignment", {})(Vocabulary(10, {"eos": 1}), 16)
    samples = [
        {"prompt": [3, 4], "answers": [[5, 6, 1], [7, 1]]},
        {"prompt": [3], "answers": [[5, 1], [6, 1], [7, 8, 1]]},
    ]
    rng = np.random.default_rng(0)
    batch = collate.batch([method.prepare(sample, rng) for sample in samples], "pad")

    def model(read: dict[str, torch.Tensor], heads: dict[str, torch.Tensor]) -> Output:
        return Output(torch.zeros(1), {"tokens": torch.zeros(int(heads["tokens"].sum()), 10)}, Aux())

    found = method.loss(model, batch)
    assert {name: int(count) for name, (_, count) in found.terms.items()} == {"nll": 5, "unlikely": 5}
    assert found.terms["nll"][0].item() == pytest.approx(5 * math.log(10), rel=1e-6)
    assert found.terms["unlikely"][0].item() == pytest.approx(-5 * math.log(0.9), rel=1e-5)
