"""An encoder and a decoder that differ: in sizes, parts, depths and token tables; parts swapped in both."""

import pytest
import torch
from families import batch, build, ids, mostly_slow, spec, tiny

from llmlab.errors import UserError
from llmlab.model import serialise
from llmlab.model.table import describe
from llmlab.training.cost import check_positions

APART = ("stacks.encoder.dim=48", "stacks.decoder.shared_embedding=false")
LATENT = ("attention=mla", "attention@stacks.decoder.cross_attention=mla")
RUNS = {
    "t5 rope": ("t5", "position=rope"),
    "t5 grouped": ("t5", "attention=gqa", "model.n_kv_heads=2"),
    "t5 experts": ("t5", "moe=topk"),
    "bart like llama": ("bart", "ffn=swiglu", "norm=rmsnorm"),
    "bart experts": ("bart", "moe=sigmoid"),
    "bart pre, sinusoidal": ("bart", "block=pre", "position=sinusoidal"),
    "t5 sandwich, alibi": ("t5", "block=sandwich", "position=alibi"),
    "t5 across in groups": ("t5", "attention@stacks.decoder.cross_attention=gqa", "model.n_kv_heads=1"),
    "heads and widths of their own": (
        "bart", "stacks.encoder.n_heads=2", "stacks.decoder.n_heads=8", "stacks.decoder.ffn_dim=40"),
    "key heads of their own": (
        "t5", "attention=gqa", "stacks.encoder.n_kv_heads=2", "stacks.decoder.n_kv_heads=1", "stacks.encoder.head_dim=6"),
    "a wider encoder": ("t5", *APART),
    "a wider encoder, untied": ("bart", *APART, "model.tie_embeddings=false"),
    "a wider encoder, read by latents": ("t5", *APART, *LATENT),
    "a wider encoder, one narrow table": ("t5", APART[0], "embedding=token", "embedding.table_width=16"),
    "depths of their own": ("bart", "stacks.encoder.n_layers=1", "stacks.decoder.n_layers=3"),
    "parts of their own": (
        "t5", "position@stacks.decoder.position=rope", "norm@stacks.encoder.norm=layernorm",
        "block@stacks.encoder.block=post", "ffn@stacks.decoder.ffn=swiglu", "moe@stacks.encoder.moe=topk"),
    "one layer of the encoder twice": ("bart", "stacks.encoder.execute=[0,0]"),
}  # fmt: skip
QUICK = ("bart like llama", "a wider encoder, read by latents")


@pytest.mark.parametrize("case", mostly_slow(RUNS, QUICK))
def test_it_runs_learns_and_decodes(case):
    model = build(*tiny(*RUNS[case]))
    data = batch(model, 7)
    out = model.train()(data)
    out.heads["tokens"].logsumexp(-1).sum().backward()
    grads = [p.grad for p in model.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in grads)
    assert all(torch.isfinite(t).all() for t in (out.hidden, out.source))
    with torch.no_grad():
        model.eval()
        cache = model.new_cache(7)
        told = [model({**data, "ids": data["ids"][:, t : t + 1]}, cache=cache).heads["tokens"] for t in range(7)]
        want = model(data).heads["tokens"]
        torch.testing.assert_close(torch.cat(told, 1), want, rtol=1e-4, atol=2e-5)
        short = {**data, "source_ids": data["source_ids"][1:, :6], "ids": data["ids"][1:]}
        del short["source_valid"]  # what padding of the source hides is not there
        torch.testing.assert_close(want[1:], model(short).heads["tokens"], rtol=1e-4, atol=2e-5)


def test_sizes_of_stacks():
    model = build(*tiny(*RUNS["heads and widths of their own"]), wake=False)
    encoder, decoder = (model.stacks[name].layers[0] for name in ("encoder", "decoder"))
    assert [(la.attention.n_heads, la.attention.head_dim) for la in (encoder, decoder)] == [(2, 16), (8, 4)]
    assert decoder.cross_attention.n_heads == 8
    assert decoder.ffn.up.weight.shape[0] == 40 != encoder.ffn.up.weight.shape[0]
    wide = build(*tiny("t5", *APART), wake=False)
    layer = wide.stacks["decoder"].layers[0]
    assert [tuple(m.weight.shape) for m in (layer.cross_attention.k, layer.attention.k)] == [(32, 48), (32, 32)]
    assert (wide.sizes.dim, wide.spec.stacks[0].sizes.dim, wide.spec.stacks[1].sizes.source_dim) == (32, 48, 48)


def test_the_table_of_layers_shows_what_differs():
    plainly = describe(spec(*tiny("bart")))
    assert len(plainly) == 2 and not any("n_heads" in line or "of its own" in line for line in plainly)
    lines = describe(spec(*tiny("bart", "stacks.encoder.n_heads=2", "model.tie_embeddings=false")))
    assert lines[0].startswith("encoder: 2 layers: n_heads=2 head_dim=16 embedding=bert position=learned")
    assert lines[1].startswith(
        "decoder: 2 layers: n_heads=4 head_dim=8 embedding=bert with a table of its own position="
    )


@pytest.mark.slow
def test_a_token_table_for_both_or_for_each():
    def tables(*overrides):
        return [n for n, p in build(*tiny(*overrides), wake=False).named_parameters() if p.shape[0] == 61]

    encoder, decoder = (f"stacks.{n}.embedding.table.weight" for n in ("encoder", "decoder"))
    assert tables("bart") == [encoder]
    assert tables("bart", "model.tie_embeddings=false") == [encoder, decoder, "heads.tokens.out.weight"]
    assert tables("t5_v1_1") == [encoder, "heads.tokens.out.weight"]
    assert tables("t5", "stacks.decoder.shared_embedding=false") == [encoder, decoder]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("t5", "stacks.encoder.dim=48"), "the decoder embeds in 32 dimensions, the first stack in 48; give both one"),
        (("bart", "stacks.decoder.n_heads=5"), "stacks.decoder.n_heads=5 does not divide model.dim=32"),
        (("bart", "stacks.encoder.dim=30"), "model.n_heads=4 does not divide stacks.encoder.dim=30"),
        (
            ("t5", "attention=gqa", "stacks.encoder.n_kv_heads=3"),
            "stacks.encoder.n_kv_heads=3 does not divide model.n_h",
        ),
        (("t5", "stacks.decoder.ffn_dim=0"), "stacks.decoder.ffn_dim must be at least 1, but is 0"),
        (("t5", "stacks.encoder.n_kv_heads=2"), "stacks.encoder.n_kv_heads: attention=mha does not use it"),
        (("bart", "stacks.encoder.n_head=2"), "stacks.encoder.n_head: there is no such key in stacks.encoder"),
        (("bart", "objective=clm"), "objective=clm trains decoder models, but model=bart is an encoder-decoder"),
    ],
)
def test_what_does_not_fit_is_refused(overrides, said):
    with pytest.raises(UserError, match=said):
        build(*tiny(*overrides), wake=False)


@pytest.mark.slow
def test_positions_that_are_too_few_for_a_sample_are_refused():
    model = build(*tiny("bart", "model.max_positions=8"), wake=False)
    check_positions(model, 8, 8)
    with pytest.raises(UserError, match="the encoder reads 9 tokens of each sample.* set model.max_positions=9"):
        check_positions(model, 9, 4)
    check_positions(build(*tiny("t5"), wake=False), 900, 900)


def test_a_run_of_before_stacks_had_a_table_of_their_own_is_read():
    kept = serialise.to_dict(spec(*tiny("t5")))
    assert serialise.from_dict(kept) == spec(*tiny("t5"))
    for stack in kept["stacks"]:
        del stack["shared_embedding"], stack["sizes"]["source_dim"]
    read = serialise.from_dict(kept)
    assert [s.shared_embedding for s in read.stacks] == [True, True]
    assert list(build(*tiny("t5"), wake=False).state_dict()) and read.sizes == spec(*tiny("t5")).sizes


def test_an_embedding_may_be_scaled_before_it_is_normed():
    """BART's option, against the definition."""
    model = build(*tiny("bart", "embedding.scale=true"))
    encoder, tokens = model.stacks["encoder"], ids(2, 5)
    x = encoder.embedding.table.weight[tokens] * 32**0.5 + encoder.positions[0].table.weight[2:7]
    from llmlab.slots import Context

    got = encoder.embedding(tokens, Context(5, ids=tokens))
    torch.testing.assert_close(got, torch.nn.functional.layer_norm(x, (32,), *encoder.embedding.norm.parameters()))


def test_an_encoder_reads_the_segments_of_its_source():
    model = build(*tiny("bart", "embedding=bert", "model.token_types=2"))
    data = batch(model, 7)
    segments = torch.zeros_like(data["source_ids"])
    first, same = model(data).hidden, model({**data, "source_segments": segments}).hidden
    assert torch.equal(first, same)
    segments[:, 3:] = 1
    assert not torch.allclose(first, model({**data, "source_segments": segments}).hidden, atol=1e-3)
