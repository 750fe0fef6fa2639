"""A trait that has no effect is an error where it was typed, and a note where a family sets it."""

from functools import partial

import pytest
import torch
from families import batch, build, composed, spec, tiny

from llmlab.config import traits
from llmlab.errors import UserError
from llmlab.model.experts import GroupedLinear, linears
from llmlab.sizes import FFNTraits
from llmlab.slots import Linear

WITHOUT_EFFECT = {
    "model.token_types=2": ("llama3", "embedding=token does not use it; leave it out or choose embedding=bert"),
    "model.logit_softcap=5": ("bert", "head=mlm does not use it"),
    "model.moe.n_experts=4": ("llama3", "moe=none does not use it; leave it out or choose moe="),
    "model.moe.z=0.1": ("deepseek_v3", "moe=sigmoid does not use it; leave it out or choose moe=expert_choice.topk"),
    "model.moe.shared_gate=true": ("qwen_moe", "there is no shared expert"),
    "model.moe.per_token=1": ("qwen_moe", "makes every weight 1"),
}


@pytest.mark.parametrize("override", WITHOUT_EFFECT)
def test_what_has_no_effect_is_refused(override):
    family, said = WITHOUT_EFFECT[override]
    with pytest.raises(UserError, match=said) as e:
        composed(*tiny(family, override))
    assert str(e.value).startswith(override.partition("=")[0]) or "per_token" in override
    assert "\n" not in str(e.value)


def test_what_a_family_sets_without_effect_is_said_once():
    chosen = composed(*tiny("deepseek_v3"))
    assert traits.notes(chosen, spec(*tiny("deepseek_v3"))) == []
    composed(*tiny("deepseek_v3", "model.moe.n_experts=16"))
    routed = tiny("qwen_moe", "model.ffn_dim=64")
    assert any("model.ffn_dim: every layer has experts" in n for n in traits.notes(composed(*routed), spec(*routed)))
    dense = tiny("qwen_moe", "moe=none")
    assert [n for n in traits.notes(composed(*dense), spec(*dense)) if n.startswith("none: moe.ffn_dim")]


@pytest.mark.parametrize("make", [Linear, partial(GroupedLinear, 3)], ids=["dense", "experts"])
def test_dropout_is_on_what_leads_out_of_an_ffn(make):
    linear = linears(make, FFNTraits(dropout=0.25))
    out, into = linear(16, 16, role="ffn_out"), linear(16, 16, role="ffn_in")
    x, groups = torch.ones(900, 16), torch.tensor([300, 600, 900], dtype=torch.int32)
    with torch.no_grad():
        for made in (out, into):
            made.weight.copy_(torch.eye(16).expand_as(made.weight))
        torch.manual_seed(0)
        y = out(x, groups)
        assert y.unique().tolist() == pytest.approx([0.0, 4 / 3])
        assert (y == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
        assert torch.equal(into(x, groups), x)
        assert torch.equal(out.eval()(x, groups), x)


@pytest.mark.parametrize("family", ["gpt2", "llama3", "qwen_moe"])
def test_a_family_drops_out_in_its_ffn_while_it_trains(family):
    model, plain = (build(*tiny(family, f"model.ffn.dropout={p}"), wake=False) for p in (0.5, 0.0))
    data = batch(model)
    with torch.no_grad():
        assert torch.equal(model(data).hidden, plain(data).hidden)
        assert torch.equal(plain.train()(data).hidden, plain.eval()(data).hidden)
        assert not torch.equal(model.train()(data).hidden, plain(data).hidden)
