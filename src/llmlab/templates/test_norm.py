"""my_norm within a model, and against its formula."""

import pytest
import torch

from llmlab import registry
from llmlab.testing import learns


def test_a_model_learns_with_it():
    learns("norm=my_norm")


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_formula(power: float):
    norm = registry.load("norm", "my_norm", {"power": power})(4, 1e-6)
    torch.nn.init.constant_(norm.weight, 0.5)
    x = [1.0, -2.0, 0.5, 4.0]
    size = (sum(abs(v) ** power for v in x) / 4 + 1e-6) ** (1 / power)
    torch.testing.assert_close(norm(torch.tensor([x])), torch.tensor([[0.5 * v / size for v in x]]))


def test_keeps_the_dtype():
    norm = registry.load("norm", "my_norm", {})(4, 1e-6)
    assert norm(torch.ones(2, 3, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
