"""GLM of 2022 against the paper written out (arXiv:2103.10360, section 2): blanks of a text that are filled in.

No library has this model, so the reference below computes a token and a head at a time.
"""

import math
from dataclasses import replace

import pytest
import torch
from families import build, mostly_slow, spec, tiny

from llmlab.hub.entry import part
from llmlab.model.build import build_model
from llmlab.model.model import Model

MASK, START = 1, 2
TEXTS = {  # a text, and its spans (begin, end) in the order in which they are filled in
    "spans in another order": ([11, 12, 13, 14, 15, 16, 17, 18, 19], [(5, 7), (1, 2)]),
    "at both ends": ([21, 22, 23, 24, 25], [(0, 2), (4, 5)]),
    "one, at the end": ([31, 32, 33, 34, 35, 36, 37], [(3, 7)]),
}


def blanks(text, spans):
    """[text with a mask for each span; each span behind a start token]: ids, places, places in blocks, length of the text."""
    ids, at = [], {}
    i = 0
    while i < len(text):
        span = next((s for s in spans if s[0] == i), None)
        if span is not None:
            at[span] = len(ids)
        ids.append(text[i] if span is None else MASK)
        i = i + 1 if span is None else span[1]
    kept = len(ids)
    places, inside = list(range(kept)), [0] * kept
    for begin, end in spans:
        for j, token in enumerate([START, *text[begin:end]]):
            ids.append(token)
            places.append(at[begin, end])
            inside.append(j + 1)
    return ids, places, inside, kept


def glm(under: str, *overrides: str) -> Model:
    """A model under another mask than its objective brings."""
    made = spec(*overrides)
    stacks = tuple(replace(s, mask=part("mask", under)) for s in made.stacks)
    model = build_model(replace(made, stacks=stacks)).eval()
    model.load_state_dict(build(*overrides).state_dict())
    return model


def batch_of(text, spans):
    ids, places, inside, kept = blanks(text, spans)
    return {
        "ids": torch.tensor([ids]),
        "positions": torch.tensor([[places, inside]]),
        "prefix_len": torch.tensor([kept]),
    }


def slowly(model: Model, text, spans, turn=None) -> torch.Tensor:
    """Logits (T, V) of the same weights, in float64. turn(vector, place, inside): what is done to queries and keys."""
    w = {name: tensor.double() for name, tensor in model.state_dict().items()}
    ids, places, inside, kept = blanks(text, spans)
    n_heads, n_layers = model.sizes.n_heads, model.sizes.n_layers

    def norm(x, name):
        x = x - x.mean()
        return x / (x.square().mean() + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return w[f"{name}.weight"] @ x + w[f"{name}.bias"]

    x = [w["stacks.main.embedding.table.weight"][i] for i in ids]
    if turn is None:
        tables = w["stacks.main.positions.0.table.weight"], w["stacks.main.positions.0.blocks.weight"]
        x = [v + tables[0][p] + tables[1][b] for v, p, b in zip(x, places, inside, strict=True)]
    for i in range(n_layers):
        at = f"stacks.main.layers.{i}."
        normed = [norm(v, at + "block.attention_norm") for v in x]
        q, k, v = ([linear(h, at + f"attention.{n}").view(n_heads, -1) for h in normed] for n in "qkv")
        for t in range(len(ids)):
            heads = []
            for n in range(n_heads):
                weights = {}
                for s in range(len(ids)):
                    if s < kept or s <= t:  # all see the text; a span sees itself up to here and those before it
                        a, b = q[t][n], k[s][n]
                        if turn is not None:
                            a, b = turn(a, places[t], inside[t]), turn(b, places[s], inside[s])
                        weights[s] = math.exp((a @ b).item() / math.sqrt(len(a)))
                total = sum(weights.values())
                heads.append(sum(weight / total * v[s][n] for s, weight in weights.items()))
            x[t] = x[t] + linear(torch.cat(heads), at + "attention.out")
        for t in range(len(ids)):
            h = linear(norm(x[t], at + "block.ffn_norm"), at + "ffn.up")
            h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
            x[t] = x[t] + linear(h, at + "ffn.down")
    return torch.stack([w["stacks.main.embedding.table.weight"] @ norm(v, "stacks.main.norm") for v in x])


def rotated(vector, place, inside):
    """Its first half turned by the place, its second by that in the block; each in two parts, of which pairs are made."""
    out = []
    for half, position in zip(vector.chunk(2), (place, inside), strict=True):
        pairs = len(half) // 2
        angles = [position * 10000 ** (-i / pairs) for i in range(pairs)]
        numbers = [complex(half[i], half[i + pairs]) * complex(math.cos(a), math.sin(a)) for i, a in enumerate(angles)]
        out += [z.real for z in numbers] + [z.imag for z in numbers]
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("name", mostly_slow(TEXTS, list(TEXTS)[:1]))
@torch.no_grad()
def test_is_the_paper(name):
    model = glm("prefix", *tiny("glm_2022"))
    got = model(batch_of(*TEXTS[name])).heads["tokens"][0]
    torch.testing.assert_close(got.double(), slowly(model, *TEXTS[name]), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_with_both_places_turned():
    model = glm("prefix", *tiny("glm_2022", "position=rope_2d"))
    got = model(batch_of(*TEXTS["at both ends"])).heads["tokens"][0]
    want = slowly(model, *TEXTS["at both ends"], turn=rotated)
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_without_positions_what_follows_the_prefix_is_one_block_at_its_last_token():
    model = glm("prefix", *tiny("glm_2022"))
    data = batch_of(*TEXTS["one, at the end"])  # whose mask is the prefix's last token
    want = model(data).heads["tokens"]
    assert torch.equal(model({k: data[k] for k in ("ids", "prefix_len")}).heads["tokens"], want)


@pytest.mark.parametrize("position", ["glm_2d", pytest.param("rope_2d", marks=pytest.mark.slow)])
@torch.no_grad()
def test_a_block_that_is_generated_with_a_cache(position):
    """The prefix at once, then a token at a time; two texts of unequal prefixes."""
    model = glm("prefix", *tiny("glm_2022", f"position={position}"))
    data = {"ids": torch.arange(20).view(2, 10) + 3, "prefix_len": torch.tensor([4, 6])}
    want, cache, got = model(data).heads["tokens"], model.new_cache(10), []
    for start, end in ((0, 6), (6, 7), (7, 10)):
        piece = {"ids": data["ids"][:, start:end], "prefix_len": data["prefix_len"]}
        got.append(model(piece, cache=cache).heads["tokens"])
    torch.testing.assert_close(torch.cat(got, 1), want, rtol=1e-4, atol=2e-5)


SWAPS = {
    "attention=gqa": ("attention=gqa",),
    "rope_2d, swiglu, rmsnorm": ("position=rope_2d", "ffn=swiglu", "norm=rmsnorm"),
    "mla turned in halves": ("attention=mla", "position=rope_2d"),
    "experts": ("moe=topk",),
}


@pytest.mark.parametrize("name", mostly_slow(SWAPS, list(SWAPS)[:1]))
@torch.no_grad()
def test_other_parts_read_the_same_batch(name):
    model = glm("prefix", *tiny("glm_2022", *SWAPS[name]))
    data = batch_of(*TEXTS["at both ends"])
    out = model(data).heads["tokens"]
    moved = {**data, "positions": data["positions"].clone()}
    moved["positions"][0, 1, -1] += 1
    assert torch.isfinite(out).all() and not torch.equal(out, model(moved).heads["tokens"])


@torch.no_grad()
def test_a_position_that_counts_one_thing_refuses_pairs():
    model = glm("prefix", *tiny("glm_2022", "position=rope", "objective=clm"))
    with pytest.raises(ValueError, match="positions count 2 things, but position=Rope 1"):
        model(batch_of(*TEXTS["at both ends"]))


@torch.no_grad()
def test_a_text_longer_than_its_tables_is_refused():
    model = build(*tiny("glm_2022"), wake=False)
    with pytest.raises(ValueError, match=r"41 positions are needed, but position=glm_2d has model.max_positions=40"):
        model({"ids": torch.zeros(1, 41, dtype=torch.long)})
