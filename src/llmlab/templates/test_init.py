"""my_init within a model, and against its formula."""

import pytest
import torch

from llmlab import registry
from llmlab.slots import Role
from llmlab.testing import SIZES, learns


def filled(role: Role, seed: int = 0) -> torch.Tensor:
    tensor = torch.empty(200, 100)
    made = registry.load("init", "my_init", {"gain": 2.0, "table_std": 0.5})()
    made.fill(tensor, role, SIZES, torch.Generator().manual_seed(seed))
    return tensor


def test_a_model_learns_with_it():
    learns("init=my_init")


@pytest.mark.parametrize(("role", "std"), [("q", 0.2), ("ffn_out", 0.2), ("embed", 0.5)])
def test_standard_deviations(role: Role, std: float):
    assert filled(role).std().item() == pytest.approx(std, rel=0.02)


def test_the_generator_decides():
    assert torch.equal(filled("q"), filled("q")) and not torch.equal(filled("q"), filled("q", seed=1))
