"""What parts compute beside linears, by their own word or by torch's counter; what caches keep, against real ones."""

import pytest
import torch
from families import DECODING, FAMILIES, batch, build, mostly_slow, spec, tiny
from torch import nn

from llmlab.model.build import assemble
from llmlab.model.flops import account, cached_numbers, forward_flops
from llmlab.slots import Cost, Linear, Position

LENGTH, DIM = 24, 32


class Mixing(nn.Module):
    """A feed-forward with an einsum over a parameter, a depthwise convolution over tokens and two linears."""

    def __init__(self, dim=DIM):
        super().__init__()
        self.up, self.down = Linear(dim, 2 * dim, role="ffn_in"), Linear(2 * dim, dim, role="ffn_out")
        self.conv = nn.Conv1d(2 * dim, 2 * dim, 3, padding=1, groups=2 * dim)
        self.heads = nn.Parameter(torch.empty(4, dim // 2, dim // 2))

    def forward(self, x, groups=None):
        y = self.conv(self.up(x).mT).mT.unflatten(-1, (4, -1))
        return self.down(torch.einsum("btnh,nhk->btnk", y, self.heads).flatten(-2))


def mixing_flops(length=LENGTH, dim=DIM):
    return 2 * length * (2 * 2 * dim * dim + 3 * 2 * dim + 4 * (dim // 2) ** 2)


class Said(Mixing):
    def cost(self, tokens, keys):
        return Cost(flops=1000.0 * tokens)


class Ahead(Mixing):
    def forward(self, x, groups=None):
        return x if float(x.detach().sum()) > 0 else super().forward(x)


def with_ffn(part, *overrides):
    """A tiny LLaMA whose feed-forward is another, on the meta device; and what its own costs."""
    model = assemble(spec(*tiny("llama3", *overrides)))
    own = sum(2 * p.numel() for layer in model.stacks["main"].layers for p in layer.ffn.parameters())
    with torch.device("meta"):
        for layer in model.stacks["main"].layers:
            layer.ffn = part()
    return model, LENGTH * own


def test_a_part_is_measured_that_has_more_than_linears():
    model, own = with_ffn(Mixing)
    rest = forward_flops(build(*tiny("llama3"), wake=False), LENGTH) - own
    found = account(model, LENGTH)
    assert found.forward() == rest + 2 * mixing_flops()
    assert [(said.part, said.how) for said in found.sources] == [("ffn=swiglu", "measured")]
    assert all(p.is_meta for p in model.parameters())


def test_what_a_part_says_counts():
    model, own = with_ffn(Said)
    rest = forward_flops(build(*tiny("llama3"), wake=False), LENGTH) - own
    found = account(model, LENGTH)
    assert found.forward() == rest + 2 * 1000 * LENGTH
    assert [said.how for said in found.sources] == ["declared"]


@pytest.mark.slow
def test_a_part_that_needs_values_is_named():
    model, own = with_ffn(Ahead)
    rest = forward_flops(build(*tiny("llama3"), wake=False), LENGTH) - own
    found = account(model, LENGTH)
    assert found.forward() == rest + 2 * 2 * LENGTH * 2 * 2 * DIM * DIM
    assert "can't be run alone" in str(found.sources[0]) and "give it cost()" in str(found.sources[0])


class Linearised(nn.Module):
    """Attention without scores: q (k v), which no pair of tokens costs anything."""

    def __init__(self, dim=DIM, heads=4):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (Linear(dim, dim, role=r) for r in ("q", "k", "v", "out"))

    def forward(self, x, view, source=None, cache=None):
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.out((q @ (k.mT @ v)).transpose(1, 2).flatten(2))


class Shifted(Position):
    """Scores that a learnt vector for each distance gives."""

    has_bias = True
    score_width = 0  # no linears make the vectors, so they are measured

    def __init__(self, width=8):
        super().__init__()
        self.far = nn.Parameter(torch.empty(LENGTH, width))

    def bias(self, q_BNTH, k_BKSH, scale, state):
        return q_BNTH @ self.far.T


@pytest.mark.slow
def test_attention_without_scores_costs_no_pairs():
    model = assemble(spec(*tiny("llama3", "attention=mha")))
    before = account(model, LENGTH)
    with torch.device("meta"):
        for layer in model.stacks["main"].layers:
            layer.attention = Linearised()
    found = account(model, LENGTH)
    scores = sum(item.flops for item in before.items if item.what == "scores")
    assert scores > 0 == sum(item.flops for item in found.items if item.what == "scores")
    assert found.forward() == before.forward() - scores + 2 * 2 * 2 * LENGTH * DIM * DIM // 4


@pytest.mark.slow
def test_a_pair_costs_what_is_handed_to_the_kernel():
    model = assemble(spec(*tiny("llama3", "attention=mla")))
    before = forward_flops(model, LENGTH)
    for layer in model.stacks["main"].layers:
        del layer.attention.pair_width
    assert forward_flops(model, LENGTH) == before


@pytest.mark.slow
def test_a_position_that_multiplies():
    model = assemble(spec(*tiny("llama3")))
    before = forward_flops(model, LENGTH)
    with torch.device("meta"):
        model.stacks["main"].positions[0] = Shifted()
    found = account(model, LENGTH)
    assert found.forward() == before + 2 * 2 * LENGTH * LENGTH * 4 * 8
    assert [(said.part, said.how) for said in found.sources] == [("position=rope", "measured")]


@pytest.mark.slow
def test_experts_are_measured_as_the_tokens_that_visit_them(monkeypatch):
    overrides = tiny("llama3", "moe=topk", "model.moe.n_experts=4", "model.moe.per_token=2", "model.moe.ffn_dim=16")
    model = assemble(spec(*overrides))
    before = forward_flops(model, LENGTH)
    part = type(model.stacks["main"].layers[0].ffn.experts)
    plain = part.forward
    monkeypatch.setattr(part, "forward", lambda self, x, groups=None: plain(self, x @ torch.empty(DIM, DIM), groups))
    assert forward_flops(model, LENGTH) == before + 2 * (2 * LENGTH) * 2 * DIM * DIM


@pytest.mark.parametrize("family", mostly_slow(FAMILIES, ("llama3",)))
def test_no_part_here_is_more_than_it_says(family):
    """Of builtin parts torch counts what their linears and pair_width make; DeBERTa's scores of distances and
    ELMo's filters, which read each place of a token, are measured."""
    said = {"deberta_v3": ["position=disentangled"], "elmo": ["embedding=char_cnn"]}.get(family, [])
    assert [what.part for what in account(assemble(spec(*tiny(family))), LENGTH).sources] == said


@pytest.mark.parametrize("family", mostly_slow(FAMILIES, ("t5",)))
def test_a_cache_is_as_large_as_said(family):
    """To the byte, of a real one."""
    model = build(*tiny(family, *DECODING.get(family, ())), wake=False)
    data = batch(model, LENGTH, 1)
    cache = model.new_cache(LENGTH)
    with torch.no_grad():
        model(data, cache=cache)
    own, across = cached_numbers(model)
    source = data["source_ids"].shape[1] if "source_ids" in data else 0
    assert 4 * (own * LENGTH + across * source) == cache.bytes() > 0


@pytest.mark.slow
def test_deepseek_v2_keeps_576_numbers_a_layer():
    assert cached_numbers(assemble(spec("model=deepseek_v2_236b"))) == (576 * 60, 0)


@pytest.mark.slow
def test_a_part_may_say_what_it_keeps():
    model = assemble(spec(*tiny("llama3")))
    for layer in model.stacks["main"].layers:
        layer.attention.cost = lambda tokens, keys: Cost(kv=7)
    assert cached_numbers(model) == (14, 0)
