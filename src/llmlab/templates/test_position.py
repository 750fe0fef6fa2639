"""my_position within a model: it is relative, tells orders apart, and gives the same with a cache."""

import torch

from llmlab.testing import cached_is_uncached, ids, learns, tiny


def test_a_model_learns_with_it():
    learns("position=my_position")


def test_generation_with_a_cache_is_that_without():
    cached_is_uncached(tiny("position=my_position"))


@torch.no_grad()
def test_only_distances_count():
    model, text = tiny("position=my_position"), ids()
    where = torch.arange(text.shape[1]).expand_as(text)
    first, later = (model({"ids": text, "positions": where + by}).hidden for by in (0, 7))
    torch.testing.assert_close(first, later, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_order_of_what_came_before_counts():
    model = tiny("position=my_position", "model.n_layers=1", "init.std=0.5")
    one, other = torch.tensor([[3, 5, 8]]), torch.tensor([[5, 3, 8]])
    assert not torch.allclose(model({"ids": one}).hidden[0, -1], model({"ids": other}).hidden[0, -1], atol=1e-4)
