"""A text in segments with a memory of all is the text at once, where nothing looks ahead; and what a memory keeps."""

import pytest
import torch
from families import build, ids, mostly_slow, tiny

from llmlab.memory import Memory
from llmlab.training.placement import Placement

LENGTH = 14
RELATIVE = ("position=xlnet_relative", "position.segments=true")
MODELS = {
    "xlnet": ("xlnet", "objective=clm"),
    "llama, by alibi": ("llama3", "position=alibi"),
    "llama, by relative scores": ("llama3", "position=xlnet_relative"),
    "no position": ("llama3", "position=none"),
    "t5's bias, sandwich": ("llama3", "position=t5_bias", "block=sandwich"),
    "latents, relative scores with segments": ("llama3", "attention=mla", *RELATIVE),
    "learned, after the sublayers": ("gpt2", "block=post"),
    "parallel": ("phi", "position=alibi"),
    "deepnorm": ("glm_130b", "objective=clm", "position=alibi"),
    "experts": ("qwen_moe", "position=alibi"),
    "windows": ("mistral", "position=alibi"),
    "run again": ("llama3", "position=alibi", "execute=[0,1,0,1]"),
    "each layer twice, scores of their own": ("llama3", "position=xlnet_relative", "execute=[0,1,1,0]"),
}


@pytest.mark.parametrize("name", mostly_slow(MODELS, list(MODELS)[:1]))
@torch.no_grad()
def test_segments_with_a_memory_are_the_whole_text(name):
    model = build(*tiny(*MODELS[name]))
    data = {"ids": ids(3, LENGTH)}
    if "segments" in str(MODELS[name]):
        data["segments"] = torch.tensor([0] * 11 + [1, 0, 1]).expand(3, -1)  # a memory counts as segment 0
    want = model(data).heads["tokens"]
    memory = Memory()
    got = [
        model({k: x[:, a:b] for k, x in data.items()}, memory=memory) for a, b in ((0, 5), (5, 6), (6, 11), (11, 14))
    ]
    torch.testing.assert_close(torch.cat([out.heads["tokens"] for out in got], 1), want, rtol=1e-4, atol=2e-5)
    assert memory.length == LENGTH and len(memory.layers) == len(model.spec.stacks[0].execute)


@torch.no_grad()
def test_padding_behind_a_memory_is_not_seen():
    model = build(*tiny("xlnet"))
    before = ids(2, 4, 1)
    first, second = Memory(), Memory()
    model({"ids": before}, memory=first)
    model({"ids": before[:1]}, memory=second)
    valid = torch.tensor([[1] * 5, [1, 1, 1, 0, 0]]).bool()
    text = ids(2, 5).flip(0)
    got = model({"ids": text, "valid": valid}, memory=first).hidden
    torch.testing.assert_close(got[:1], model({"ids": text[:1]}, memory=second).hidden, rtol=1e-4, atol=2e-5)
    again = torch.where(valid, text, 7)
    first.layers = [x[:, :4] for x in first.layers]
    torch.testing.assert_close(model({"ids": again, "valid": valid}, memory=first).hidden[valid], got[valid])


def test_what_is_kept_and_reused():
    memory = Memory(keep=5, reuse=2)
    for i in range(4):
        memory.extend([torch.full((1, 3, 1), float(i), requires_grad=True)])
    assert memory.layers[0].flatten().tolist() == [1, 2, 2, 3, 3]
    assert not memory.layers[0].requires_grad
    with pytest.raises(ValueError, match="keep=0"):
        Memory(keep=0)


def test_gradients_reach_what_projects_the_memory_and_no_earlier_segment():
    model = build(*tiny("xlnet"))
    memory = Memory()
    early = model({"ids": ids(2, 5)}, memory=memory)
    out = model({"ids": ids(2, 5, 1)}, memory=memory)
    loss = out.heads["tokens"].square().sum()
    assert torch.autograd.grad(loss, early.hidden, allow_unused=True, retain_graph=True) == (None,)
    k = model.stacks["main"].layers[0].attention.k.weight
    assert torch.autograd.grad(loss, k)[0].abs().sum() > 0


@pytest.mark.slow
def test_recomputed_layers_read_the_memory_that_they_had():
    plain, again = (build(*tiny("xlnet")) for _ in range(2))
    Placement(activation_checkpointing=True).apply(again)
    for model in (plain, again):
        memory = Memory(keep=6)
        losses = [model({"ids": ids(2, 5, i)}, memory=memory).heads["tokens"].square().mean() for i in range(3)]
        sum(losses).backward()
    for a, b in zip(plain.parameters(), again.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)


@torch.no_grad()
def test_what_does_not_go_with_a_memory_says_so():
    model = build(*tiny("llama3"), wake=False)
    memory = Memory()
    model({"ids": ids(1, 3)}, memory=memory)
    with pytest.raises(
        ValueError, match="position=Rope changes queries and keys, which layer inputs of a memory are not"
    ):
        model({"ids": ids(1, 3)}, memory=memory)
    with pytest.raises(ValueError, match="a memory is for one stack, without a cache or documents"):
        model({"ids": ids(1, 3)}, memory=Memory(), cache=model.new_cache(3))
