"""ChatGLM-6B, which transformers does not have: out and back, and what it does when only a text is given."""

import pytest
import torch
from families import build, tiny

import llmlab
from llmlab.errors import UserError

START, MASK, GMASK = 50, 51, 52
OVERRIDES = ("chatglm1", "objective=mlm", "+head@heads.tokens=lm")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    import json

    folder = tmp_path_factory.mktemp("chatglm1")
    model = build(*tiny(*OVERRIDES))
    llmlab.save_hf(model, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"bos_token_id": START, "mask_token_id": MASK, "gmask_token_id": GMASK}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, model


def text(*ids):
    return torch.tensor([ids])


@torch.no_grad()
def test_out_and_back(saved):
    folder, model = saved
    back = llmlab.load_hf(folder, verbose=False)
    assert list(back.model.state_dict()) == list(model.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(back.model.state_dict().values(), model.state_dict().values(), strict=True)
    )
    assert back.model.spec.stacks[0].layers[0].parts["block"].name == "scaled_pre"


@pytest.mark.parametrize("hole", [MASK, GMASK])
@torch.no_grad()
def test_a_text_alone_is_a_prefix_and_a_block_at_its_mask(saved, hole):
    model = llmlab.load_hf(saved[0], verbose=False)
    ids = text(7, 8, hole, 9, START, 10, 11)
    hidden = torch.ones(1, 1, 7, 7).triu(1)
    hidden[..., :4] = 0
    places = torch.tensor([[[0, 1, 2, 3, 2, 2, 2], [0, 0, 0, 0, 1, 2, 3]]])
    want = model(ids, attention_mask=hidden, position_ids=places).logits
    assert torch.equal(model(ids).logits, want)
    assert torch.equal(model(ids, position_ids=places).logits, want)
    assert not torch.equal(model(ids, attention_mask=hidden * 0, position_ids=places).logits, want)


@torch.no_grad()
def test_what_is_missing_or_unknown_is_named(saved):
    model = llmlab.load_hf(saved[0], verbose=False)
    with pytest.raises(ValueError, match="a text has no start token; give attention_mask and position_ids"):
        model(text(7, MASK, 8))
    with pytest.raises(ValueError, match="a text has no mask token"):
        model(text(7, START, 8))
    with pytest.raises(TypeError, match=r"attention_mask must be \(B, 1, T, T\)"):
        model(text(7, MASK, START), attention_mask=torch.ones(1, 3))
    with pytest.raises(TypeError, match="token_type_ids is not an argument"):
        model(text(7, MASK, START), token_type_ids=torch.ones(1, 3))


def test_a_causal_one_has_no_place(tmp_path):
    with pytest.raises(UserError, match="has no place for mask=causal"):
        llmlab.save_hf(build(*tiny("chatglm1", "objective=clm"), wake=False), tmp_path / "out")
