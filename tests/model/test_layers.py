"""Hidden states of layers, which an objective may ask for."""

import copy

import pytest
import torch

from llmlab.config.compose import compose
from llmlab.hub import load_hf
from llmlab.model import build
from llmlab.training.placement import Placement

TINY = ("model.dim=32", "model.n_heads=2", "model.vocab_size=61", "kernel=eager")
BATCH = {"ids": torch.arange(22).view(2, 11)}


def tiny(*words):
    return build.build_model(compose([*TINY, *words]).spec)


@pytest.mark.parametrize("family", ["gpt2", "bert", "albert"])
def test_they_are_what_the_layers_read_and_give(family):
    model = tiny(f"model={family}", "model.n_layers=3", "objective=" + ("clm" if family == "gpt2" else "mlm_only"))
    (stack,), seen = model.all_stacks(), []
    # ALBERT runs one layer three times.
    for layer in stack.layers:
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    out = model(BATCH, layers=[0, 1, 2, 3, -1, -4])
    read = [*seen, out.hidden]
    for state, i in zip(out.layers, [0, 1, 2, 3, 3, 0], strict=True):
        assert torch.equal(state, read[i])
    assert model(BATCH).layers == ()
    with pytest.raises(ValueError, match="hidden states of layer 4 are asked for, but the layers are 1 to 3"):
        model(BATCH, layers=[4])


def test_recomputed_layers_give_the_same_gradients():
    plain = tiny("model=llama3", "model.n_layers=3")
    again = copy.deepcopy(plain)
    Placement(activation_checkpointing=True).apply(again)
    for model in (plain, again):
        sum(state.square().sum() for state in model(BATCH, layers=[1, 3]).layers).backward()
    for (name, one), (_, other) in zip(plain.named_parameters(), again.named_parameters(), strict=True):
        assert one.grad is other.grad is None or torch.equal(one.grad, other.grad), name


# As AllenNLP's ScalarMix (allennlp/modules/scalar_mix.py): a softmax of one parameter a layer, and gamma.
@pytest.mark.parametrize("family", ["elmo", "albert"])
def test_a_head_of_all_layers_mixes_them_by_softmax_and_gamma(family):
    words = [f"model={family}", "objective=token_classify", "model.n_layers=2", "heads.labels.mixed=true"]
    model, last = tiny(*words).eval(), tiny(*words[:-1], "heads.labels.mixed=false").eval()
    head, where = model.heads["labels"], torch.rand(2, 11, generator=torch.Generator().manual_seed(0)) > 0.5
    states = torch.stack(model(BATCH, layers=[0, 1, 2]).layers)
    torch.testing.assert_close(model(BATCH).heads["labels"], last.heads["labels"](states.mean(0), None))
    with torch.no_grad():
        # exp: 1, 2 and 5 of 8.
        head.mix.weights.copy_(torch.tensor([0.0, 2.0, 5.0]).clamp(min=1).log())
        head.mix.gain.fill_(3.0)
    asked = model(BATCH, heads={"labels": where}, layers=[1])
    wanted = 3 * (states[0] / 8 + states[1] / 4 + states[2] * 5 / 8)
    torch.testing.assert_close(asked.heads["labels"], last.heads["labels"](wanted[where], None))
    assert len(asked.layers) == 1 and torch.equal(asked.layers[0], states[1])
    # Of a sum y.g with a slope g: dw_j = s_j (g.h_j - sum_i s_i g.h_i) gamma.
    asked.heads["labels"].sum().backward()
    slopes = 3 * (states[:, where] @ head.out.weight.sum(0)).sum(-1)
    shares = torch.tensor([1, 2, 5]) / 8
    torch.testing.assert_close(head.mix.weights.grad, shares * (slopes - shares @ slopes), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head.mix.gain.grad, (shares @ slopes / 3)[None], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_they_are_those_of_transformers(tmp_path):
    from transformers import GPT2Config, GPT2Model

    theirs = GPT2Model(GPT2Config(n_embd=32, n_head=2, n_layer=3, vocab_size=61, n_positions=16)).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_hf(tmp_path, verbose=False).model.eval()
    with torch.no_grad():
        for one, other in zip(
            ours(BATCH, layers=[0, 1, 2, 3]).layers,
            theirs(BATCH["ids"], output_hidden_states=True).hidden_states,
            strict=True,
        ):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
