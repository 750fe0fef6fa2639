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
