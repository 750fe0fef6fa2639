"""One stack that reads another model's hidden states."""

import pytest
import torch
from families import build, ids, tiny

from llmlab.config import layout
from llmlab.config.compose import compose
from llmlab.errors import UserError
from llmlab.model.build import build_model

CHOICES = tiny("bert", "objective=clm", "+attention@stacks.main.cross_attention=mha")
SOURCE = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(4))
VALID = torch.arange(7) < torch.tensor([[7], [4]])


def crossed():
    """The model with weights that count; trained as it is it would have nothing to read."""
    model = build_model(layout.resolve(compose(CHOICES, strict=False))).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * (0.3 if p.dim() > 1 else 0.1))
    return model


def test_it_is_not_trained_without_something_to_read():
    with pytest.raises(
        UserError, match="stacks.main.cross_attention=mha reads an encoder's states, but there is no encoder"
    ):
        compose(CHOICES)


@torch.no_grad()
def test_a_cache_keeps_what_is_read():
    model = crossed()
    data = {"ids": ids(2, 9), "source": SOURCE, "source_valid": VALID}
    whole = model(data).heads["tokens"]
    cache = model.new_cache(9)
    steps = [model({**data, "ids": data["ids"][:, :4]}, cache=cache).heads["tokens"]]
    steps += [model({"ids": data["ids"][:, i : i + 1]}, cache=cache).heads["tokens"] for i in range(4, 9)]
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_padding_of_what_is_read_changes_nothing():
    model, data = crossed(), {"ids": ids(2, 9), "source_valid": VALID}
    other = torch.where(VALID[..., None], SOURCE, 100.0)
    one, two = (model({**data, "source": source}).hidden for source in (SOURCE, other))
    torch.testing.assert_close(one, two)
    assert not torch.allclose(one[0], model({"ids": data["ids"]}).hidden[0], atol=1e-2)


@torch.no_grad()
def test_without_a_source_it_is_the_model_without_cross_attention():
    model, plain = crossed(), build(*tiny("bert", "objective=clm"))
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "cross_attention" not in k})
    assert torch.equal(model({"ids": ids(2, 9)}).hidden, plain({"ids": ids(2, 9)}).hidden)
    with pytest.raises(ValueError, match="source is given, but this model has no cross-attention"):
        plain({"ids": ids(2, 9), "source": SOURCE})
