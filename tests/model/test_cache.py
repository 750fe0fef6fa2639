"""Decoding with a cache gives the logits of decoding without one."""

import itertools

import pytest
import torch
from families import DECODING, ENCODER_DECODERS, FAMILIES, QUICK, batch, build, ids, mostly_slow, spec, tiny

from llmlab.errors import UserError
from llmlab.model.cache import Cache

LENGTH = 14
DUAL_CHUNK = ("position=dual_chunk", "position.chunk=4", "position.local=3", "kernel=eager")
VARIANTS = {
    "rope linear": ("llama3", "position.scaling=linear", "position.factor=3"),
    "rope llama3": ("llama3", "position.scaling=llama3", "position.factor=8", "position.original_max=16"),
    "rope yarn": ("llama3", "position.scaling=yarn", "position.factor=4", "position.original_max=16"),
    "rope dynamic, within its length": ("llama3", "position.scaling=dynamic", "position.factor=4"),
    "rope partial, interleaved": ("llama3", "position.fraction=0.5", "position.interleaved=true"),
    "dual chunk": ("llama3", *DUAL_CHUNK),
    "dual chunk with yarn, latent": ("llama3", "attention=mla", *DUAL_CHUNK, "position.scaling=yarn", "position.factor=4"),
    "alibi": ("llama3", "position=alibi"),
    "none": ("llama3", "position=none"),
    "sinusoidal": ("llama3", "position=sinusoidal"),
    "learned": ("llama3", "position=learned"),
    "t5 bias": ("llama3", "position=t5_bias", "position.buckets=8", "position.max_distance=10"),
    "sliding": ("llama3", "window=sliding", "window.left=4"),
    "one key head": ("llama3", "attention=mqa"),
    "latent with alibi": ("llama3", "attention=mla", "position=alibi"),
    "latent with a query latent": ("deepseek_v3", "attention.q_rank=12"),
    "latent with dynamic rope": ("llama3", "attention=mla", "position.scaling=dynamic", "position.factor=4"),
    "latent in t5's decoder and across": (
        "t5", "attention@stacks.decoder.attention=mla", "attention@stacks.decoder.cross_attention=mla"),
    "full qk norm": ("llama3", "model.attention.qk_norm=full"),
    "layers run again": ("llama3", "execute=[0,1,0,1]"),
    "sandwich, eager, capped, sink": (
        "llama3", "block=sandwich", "kernel=eager", "model.attention.softcap=4.0", "model.attention.sink=true"),
}  # fmt: skip
MODELS = {**{family: (family, *DECODING.get(family, ())) for family in FAMILIES}, **VARIANTS}


def pieces(model, data, cuts) -> torch.Tensor:
    """Logits of all positions, the new tokens given in pieces."""
    cache = model.new_cache(data["ids"].shape[1])
    out = []
    for start, end in itertools.pairwise(cuts):
        piece = {**data, **{k: data[k][:, start:end] for k in ("ids", "valid", "positions") if k in data}}
        out.append(model(piece, cache=cache).heads["tokens"])
    return torch.cat(out, 1)


@pytest.mark.parametrize("name", mostly_slow(MODELS, (*QUICK, *list(VARIANTS)[::3])))
@torch.no_grad()
def test_cached_is_uncached(name):
    model = build(*tiny(*MODELS[name]))
    assert model.spec.sizes.causal
    data = batch(model, LENGTH, 3)
    want = model(data).heads["tokens"]
    assert want.std() > 0.1
    for cuts in (range(LENGTH + 1), [0, 5, 6, 11, LENGTH]):
        torch.testing.assert_close(pieces(model, data, list(cuts)), want, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("family", mostly_slow(f for f in FAMILIES if f not in (*DECODING, *ENCODER_DECODERS)))
@torch.no_grad()
def test_left_padding_with_a_cache(family):
    """A batch of prompts of unequal length, padded on the left, gives each what it gets alone."""
    model = build(*tiny(family))
    lengths, total = [10, 6, 3], 10
    data = {"ids": ids(3, total + 3)}
    starts = torch.tensor([total - n for n in lengths])
    data["valid"] = torch.arange(total + 3)[None] >= starts[:, None]
    data["positions"] = (torch.arange(total + 3)[None] - starts[:, None]).clamp(min=0)
    full = model(data).heads["tokens"]
    cached = pieces(model, data, [0, total, total + 1, total + 2, total + 3])
    for i, start in enumerate(starts.tolist()):
        alone = model({"ids": data["ids"][i : i + 1, start:]}).heads["tokens"][0]
        torch.testing.assert_close(full[i, start:], alone, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(cached[i, start:], alone, rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_validity_may_begin_late_and_end_early():
    """Pieces with and without `valid` mix: what is not said to be padding is not."""
    model = build(*tiny("llama3"))
    data = {"ids": ids(2, 9), "valid": torch.ones(2, 9, dtype=torch.bool)}
    data["valid"][1, 4] = False
    want = model(data).heads["tokens"]
    cache = model.new_cache(9)
    out = [model({"ids": data["ids"][:, :4]}, cache=cache)]
    out += [
        model({k: v[:, 4:6] for k, v in data.items()}, cache=cache),
        model({"ids": data["ids"][:, 6:]}, cache=cache),
    ]
    torch.testing.assert_close(torch.cat([o.heads["tokens"] for o in out], 1), want, rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_positions_that_skip_padding_count_for_themselves():
    """Chunks begin with a text, not with its padding, also beside layers whose positions count padding."""
    model = build(*tiny("gemma3", "position@kinds.global.position=dual_chunk", "kernel=eager",
        "kinds.global.position.chunk=4", "kinds.global.position.local=2"))  # fmt: skip
    assert len(model.stacks["main"].positions) == 2
    data = {"ids": ids(2, 12), "valid": torch.arange(12)[None] >= torch.tensor([[0], [3]])}
    full, cached = model(data).heads["tokens"], pieces(model, data, [0, 7, 8, 12])
    alone = model({"ids": data["ids"][1:, 3:]}).heads["tokens"][0]
    torch.testing.assert_close(full[1, 3:], alone, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(cached[0], full[0], rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(cached[1, 3:], alone, rtol=1e-4, atol=2e-5)


LONGROPE = ("scaling=longrope", "short_factor=[1,1.1,1.5,2]", "long_factor=[1,3,5,9]")


@pytest.mark.parametrize(
    "options", [("scaling=dynamic", "factor=4"), ("scaling=dynamic_steps", "log_n=true"), LONGROPE], ids=lambda o: o[0]
)
@torch.no_grad()
def test_dynamic_rope_past_its_length_turns_all_keys_anew(options):
    """Its angles depend on the length, so the last token's logits of one layer are those of a whole new forward."""
    overrides = ("model.n_layers=1", "model.max_positions=5", *(f"position.{o}" for o in options))
    model = build(*tiny("llama3", *overrides))
    assert not model.stacks["main"].positions[0].caches_rotated
    tokens = ids(2, 12)
    cache = model.new_cache(12)
    for t in range(12):
        last = model({"ids": tokens[:, t : t + 1]}, cache=cache).heads["tokens"][:, 0]
        want = model({"ids": tokens[:, : t + 1]}).heads["tokens"][:, -1]
        torch.testing.assert_close(last, want, rtol=1e-4, atol=2e-5)


def size_of(name: str, length: int) -> tuple[int, int]:
    model = build(*tiny(name), wake=False)
    cache = model.new_cache(length)
    with torch.no_grad():
        model({"ids": ids(2, length)}, cache=cache)
    return cache.bytes(), 2 * length * 4 * len(model.spec.stacks[-1].execute)


def test_a_latent_cache_is_the_latent_and_one_rotated_key():
    held, rows = size_of("deepseek_v3", 7)
    head = spec(*tiny("deepseek_v3")).sizes.head_dim
    assert held == rows * (4 * head + head // 2)


def test_a_cache_holds_keys_and_values_of_every_executed_layer():
    assert size_of("gpt2", 7)[0] == size_of("gpt2", 7)[1] * 2 * 32
    assert size_of("llama3", 7)[0] == size_of("llama3", 7)[1] * 2 * 8  # one key head of width 8 for four queries
    model = build(*tiny("albert", "objective=clm"), wake=False)
    assert len(model.new_cache(3).layers) == 2


def test_a_cache_that_is_full_says_so():
    model = build(*tiny("llama3"), wake=False)
    cache = model.new_cache(4)
    with torch.no_grad():
        model({"ids": ids(1, 4)}, cache=cache)
        with pytest.raises(ValueError, match="holds 4 positions, but 5 are needed"):
            model({"ids": ids(1, 1)}, cache=cache)


def test_position_ids_may_gain_a_batch():
    cache = Cache(1, 8)
    assert cache.extend_positions(torch.arange(3)).tolist() == [0, 1, 2]
    assert cache.extend_positions(torch.tensor([[3], [7]])).tolist() == [[0, 1, 2, 3], [0, 1, 2, 7]]
    assert cache.extend_positions(torch.tensor([8])).tolist() == [[0, 1, 2, 3, 8], [0, 1, 2, 7, 8]]


@torch.no_grad()
def test_the_source_is_read_once():
    model = build(*tiny("t5"))
    data = batch(model, 6)
    cache = model.new_cache(6)
    first = model({**data, "ids": data["ids"][:, :3]}, cache=cache).heads["tokens"]
    second = model({"ids": data["ids"][:, 3:]}, cache=cache).heads["tokens"]
    torch.testing.assert_close(torch.cat([first, second], 1), model(data).heads["tokens"], rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_what_a_forward_lacks_or_cannot_take_is_named():
    model = build(*tiny("t5"), wake=False)
    with pytest.raises(ValueError, match="source_ids is missing"):
        model({"ids": ids(1, 3)})
    model = build(*tiny("llama3"), wake=False)
    with pytest.raises(ValueError, match="documents can't be given with a cache"):
        model({"ids": ids(1, 3), "documents": torch.zeros(1, 3)}, cache=model.new_cache(3))


def test_a_stack_without_layers_is_refused():
    with pytest.raises(UserError, match="model.n_layers=1 leaves stacks.encoder.n_layers=0"):
        spec(*tiny("t5", "model.n_layers=1"))


@torch.no_grad()
def test_a_text_of_padding_alone_gives_numbers():
    for family in ("llama3", "qwen_moe", "t5"):
        for kernel in ("eager", "sdpa"):
            model = build(*tiny(family, f"kernel={kernel}"))
            data = batch(model, 5)
            data["valid"] = torch.tensor([[1] * 5, [0] * 5]).bool()
            if "source_valid" in data:
                data["source_valid"][1] = False
            out = model(data)
            assert torch.isfinite(out.heads["tokens"]).all()
            assert out.aux is None or torch.isfinite(out.aux.loss)
