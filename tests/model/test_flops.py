"""FLOPs against torch's counter, visible pairs against a loop, parameters against arithmetic."""

import pytest
import torch
from families import DECODING, FAMILIES, QUICK, batch, build, mostly_slow, spec, tiny
from torch.utils.flop_counter import FlopCounterMode

from llmlab import registry
from llmlab.model.build import assemble
from llmlab.model.flops import allowed_pairs, count_parameters, forward_flops, training_flops_per_token
from llmlab.model.trainable import Filter

LENGTH, SOURCE = 24, 17
LOOPS = ("model.moe.ffn_dim=22",)  # a width that grouped_mm does not take: a product an expert, which torch counts
VARIANTS = {
    "bert causal": ("bert", *DECODING["bert"]),
    "albert, tied head": ("albert", *DECODING["albert"]),
    "mqa, wide heads": ("llama3", "attention=mqa", "model.head_dim=12"),
    "mla with a query latent": ("llama3", "attention=mla", "attention.q_rank=20"),
    "t5 across by latents": ("t5", "attention@stacks.decoder.cross_attention=mla"),
    "shared expert behind a gate": ("llama3", "moe=topk", "model.moe.n_shared=2", "model.moe.shared_gate=true"),
    "experts that choose": ("bert", "moe=expert_choice", "moe.capacity=3"),
    "run again": ("llama3", "execute=[0,1,0,1,1]"),
}
MODELS = {**{family: (family,) for family in FAMILIES}, **VARIANTS}


def example(model) -> tuple[dict, dict]:
    data = batch(model, LENGTH, 1)
    if "source_ids" not in data:
        return data, {}
    return {"ids": data["ids"], "source_ids": torch.ones(1, SOURCE, dtype=torch.long)}, {"source_length": SOURCE}


@pytest.mark.parametrize("name", mostly_slow(MODELS, (*QUICK, *list(VARIANTS)[::2])))
def test_the_dense_count_is_torchs(name):
    layers = spec(*tiny(*MODELS[name])).stacks[-1].layers
    routed = any(layer.parts["moe"].name != "none" for layer in layers)
    model = build(*tiny(*MODELS[name], "kernel=eager", *(LOOPS if routed else ())), wake=False)
    data, how = example(model)
    counter = FlopCounterMode(display=False)
    with counter:
        loss = model(data).heads["tokens"].sum()
    forward = counter.get_total_flops()
    assert forward_flops(model, LENGTH, dense=True, **how) == pytest.approx(forward, rel=0.01)
    with counter:
        loss = model(data).heads["tokens"].sum()
        loss.backward()
    both = counter.get_total_flops()
    tokens = LENGTH + how.get("source_length", 0)
    assert training_flops_per_token(model, LENGTH, dense=True, **how) * tokens == pytest.approx(both, rel=0.01)


@pytest.mark.parametrize("family", ["gpt2", "llama3", "gemma3", "deepseek_v3"])
def test_the_count_is_the_dense_one_less_the_hidden_pairs(family):
    model = build(*tiny(family), wake=False)
    stack = model.stacks["main"]
    hidden = sum(
        2 * (LENGTH**2 - allowed_pairs(stack.mask, stack.windows[i], LENGTH)) * stack.layers[i].attention.pair_width
        for i in stack.spec.execute
    )
    assert forward_flops(model, LENGTH, dense=True) - forward_flops(model, LENGTH) == hidden > 0


@pytest.mark.parametrize("family", ["llama3", "gemma3", "bert"])
def test_pairs_of_separate_documents_are_those_within_each(family):
    model = build(*tiny(family), wake=False)
    stack = model.stacks["main"]
    whole = forward_flops(model, LENGTH)
    assert forward_flops(model, LENGTH, documents=[[LENGTH]]) == whole
    assert forward_flops(model, LENGTH, documents=[[10, 14], [LENGTH]]) < whole
    documents = torch.tensor([0] * 5 + [1] * 2 + [2] * 17)
    seen = 0
    for i in stack.spec.execute:
        q, k = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)[None]
        allowed = stack.mask.allowed(q, k, {}) & stack.windows[i].allowed(q, k, {})
        hidden = (allowed & (documents[:, None] != documents)).sum().item()
        seen += 2 * hidden * stack.layers[i].attention.pair_width
    assert whole - forward_flops(model, LENGTH, documents=[[5, 2, 17]]) == seen > 0


FROZEN = {
    "a head": ("llama3", "heads"),
    "a head of its own layers": ("bert", "heads"),
    "the last layer": ("gpt2", "*.layers.1"),
    "its feed-forward": ("albert", "heads.tokens.dense,-position"),
    "all but tables": ("opt", "-embed,-position"),
    "queries and values": ("gemma3", "q,v"),
    "norms": ("deepseek_v3", "norm"),
    "a decoder": ("t5", "stacks.decoder"),
    "experts under a frozen router": ("qwen_moe", "-router,-*.layers.0"),
    "relative positions": ("xlnet", "*.layers.1.ffn"),
}


@pytest.mark.parametrize("case", mostly_slow(FROZEN, list(FROZEN)[::3]))
def test_a_backward_through_frozen_parameters_is_torchs(case):
    """Nothing below the first that learns, and of a frozen layer above it the half."""
    family, words = FROZEN[case]
    routed = any(layer.parts["moe"].name != "none" for layer in spec(*tiny(family)).stacks[-1].layers)
    model = build(*tiny(family, "kernel=eager", *(LOOPS if routed else ())), wake=False)
    Filter.from_words(words.split(",")).apply(model)
    data, how = example(model)
    with (counter := FlopCounterMode(display=False)):
        model(data).heads["tokens"].sum().backward()
    tokens = LENGTH + how.get("source_length", 0)
    counted = training_flops_per_token(model, LENGTH, dense=True, **how) * tokens
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_frozen_layers_in_closed_form():
    """A lone head: a third of a layer's FLOPs, all of its own but the gradient of what it reads."""
    model = build(*tiny("llama3"), wake=False)
    forward, head = forward_flops(model, LENGTH), LENGTH * 2 * 32 * 61
    Filter.from_words(["heads"]).apply(model)
    assert training_flops_per_token(model, LENGTH) * LENGTH == pytest.approx(forward + head, rel=1e-12)
    assert count_parameters(model).trainable == 32 * 61
    model.requires_grad_(True)
    Filter.from_words(["-heads"]).apply(model)
    assert training_flops_per_token(model, LENGTH) * LENGTH == pytest.approx(3 * forward - head, rel=1e-12)


def test_a_gpt2_by_hand():
    """Kaplan et al. 2020, table 1: 2 N a token for the matrices, and 2 n_layers pairs 2 dim for the scores."""
    model = build(*tiny("gpt2"), wake=False)
    matrices = 2 * (4 * 32 * 32 + 2 * 32 * 128) + 32 * 61
    pairs = LENGTH * (LENGTH + 1) // 2
    assert forward_flops(model, LENGTH) == 2 * LENGTH * matrices + 2 * 2 * pairs * 2 * 32


def test_heads_that_read_a_share_of_the_positions():
    model = build(*tiny("bert"), wake=False)
    whole, none = (
        forward_flops(model, LENGTH, heads={"tokens": 1.0}),
        forward_flops(model, LENGTH, heads={"tokens": 0.0}),
    )
    assert whole - none == LENGTH * 2 * (32 * 32 + 32 * 61)
    assert forward_flops(model, LENGTH, heads={"tokens": 0.25}) == pytest.approx(none + 0.25 * (whole - none))


MASKS = {
    "causal": (None, lambda q, k: k <= q),
    "bidirectional": (None, lambda q, k: True),
    "prefix": (5, lambda q, k: k <= q or k < 5),
}
WINDOWS = {
    "full": ({}, lambda q, k: True),
    "left": ({"left": 4}, lambda q, k: q - k < 4),
    "both": ({"left": 3, "right": 2}, lambda q, k: q - k < 3 and k - q <= 2),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("length", [1, 4, 13])
def test_pairs_by_counting(mask, window, length):
    prefix, sees = MASKS[mask]
    options, near = WINDOWS[window]
    want = sum(bool(sees(q, k) and near(q, k)) for q in range(length) for k in range(length))
    parts = registry.load("mask", mask, {})(), registry.load("window", "sliding" if options else "full", options)()
    assert allowed_pairs(*parts, length, prefix) == want
    assert allowed_pairs(*parts, length, prefix, rows=3) == want


@pytest.mark.parametrize("mask", ["causal", "bidirectional", "prefix", "permutation"])
@pytest.mark.parametrize("window", [("full", {}), ("sliding", {"left": 9, "right": 4}), ("strided", {"stride": 7})])
def test_pairs_by_distance_are_those_by_rows(mask, window, monkeypatch):
    parts = registry.load("mask", mask, {})(), registry.load("window", *window)()
    by_distance = [allowed_pairs(*parts, length) for length in (1, 50, 131)]
    monkeypatch.setattr(type(parts[1]), "relative", False)
    assert [allowed_pairs(*parts, length) for length in (1, 50, 131)] == by_distance


def test_pairs_of_a_long_text():
    causal, left = registry.load("mask", "causal", {})(), registry.load("window", "sliding", {"left": 64})()
    assert allowed_pairs(causal, left, 2**17) == 64 * 65 // 2 + (2**17 - 64) * 64


def test_parameters():
    counts = count_parameters(assemble(spec(*tiny("qwen_moe"))))
    layers, experts, per_token, dim = 2, 8, 2, 32
    ffn = spec(*tiny("qwen_moe")).sizes.moe.ffn_dim
    attention = 2 * dim * dim + 2 * dim * 8 + 2 * 8  # a key head of width 8, and norms of queries and keys
    rest = 2 * 61 * dim + dim + layers * (attention + 2 * dim + dim * experts)
    assert counts.total == rest + layers * experts * 3 * dim * ffn
    assert counts.active == rest + layers * per_token * 3 * dim * ffn
    assert counts.embedding == 61 * dim
    own = ("moe=expert_choice", "moe.capacity=1.5", "moe.leak_future=true")
    fewer = count_parameters(assemble(spec(*tiny("qwen_moe", *own))))
    assert fewer.total == counts.total
    assert fewer.active == rest + layers * 3 * dim * ffn * 3 // 2
    assert count_parameters(assemble(spec(*tiny("gpt2")))).embedding == (61 + 40) * dim
    assert count_parameters(assemble(spec(*tiny("bert")))).embedding == (61 + 40 + 2) * dim
