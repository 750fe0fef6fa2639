"""Attention parts against a loop over heads, against the reference implementations, and with a cache."""

import pytest
import torch
from parts import build, close, kernels, names, part, randn, sizes, softmax_loop, view

from llmlab.model.view import LayerCache
from llmlab.slots import Position

RMS = part("norm", "rmsnorm")
ATTENTIONS = ("gqa", "mha", "mla", "mqa")


def rope(width, **options):
    return part("position", "rope", **options)(sizes(rotary_dim=width))


def copy(module, **weights):
    """Put reference weights (and biases) into the named children."""
    with torch.no_grad():
        for name, source in weights.items():
            target = module.get_submodule(name)
            target.weight.copy_(source.weight)
            if getattr(source, "bias", None) is not None:
                target.bias.copy_(source.bias)
    return module


def test_every_attention_is_here():
    assert set(names("attention")) == {*ATTENTIONS, "lstm", "lstm_apart"}  # these two: test_recurrence.py


@pytest.mark.parametrize(
    "traits", [{}, {"qkv_bias": True, "out_bias": True, "softcap": 2.0, "sink": True, "scale": 0.7}]
)
@pytest.mark.parametrize(
    ("name", "n_kv_heads", "kv"), [("mha", None, 4), ("gqa", 2, 2), ("gqa", None, 1), ("mqa", None, 1), ("mha", 2, 4)]
)
def test_is_a_loop_over_heads(name, n_kv_heads, kv, traits):
    attention = build(part("attention", name), sizes(n_kv_heads=n_kv_heads, attention=traits), RMS)
    assert attention.k.weight.shape == (kv * 6, 24)
    x = randn(1, 5, 24)

    def project(linear):
        return (
            x[0].double() @ linear.weight.double().T + (linear.bias.double() if linear.bias is not None else 0)
        ).unflatten(-1, (-1, 6))

    q, k, v = (project(linear) for linear in (attention.q, attention.k, attention.v))
    heads = [
        softmax_loop(
            q[:, n],
            k[:, n // (4 // kv)],
            v[:, n // (4 // kv)],
            lambda t, s: s <= t,
            scale=traits.get("scale", 6**-0.5),
            softcap=traits.get("softcap"),
            sink=attention.sink[n].item() if traits else None,
        )
        for n in range(4)
    ]
    want = torch.cat(heads, -1) @ attention.out.weight.double().T + (attention.out.bias.double() if traits else 0)
    close(attention(x, view(5))[0], want)


def test_clip_keeps_q_k_and_v_within_bounds():
    attention = build(part("attention", "mha"), sizes(attention={"clip_qkv": 0.3}), RMS)
    seen = {}

    class Spy:
        def attend(self, q, k, v, score, **options):
            seen.update(q=q, k=k, v=v)
            return q

    attention(randn(1, 5, 24) * 5, Spy())
    assert [t.abs().max().item() for t in seen.values()] == pytest.approx([0.3, 0.3, 0.3])


def test_equals_llama_and_qwen3_and_olmo2():
    from transformers import LlamaConfig, Olmo2Config, Qwen3Config
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
    from transformers.models.olmo2.modeling_olmo2 import Olmo2Attention
    from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

    x = randn(2, 6, 24)
    causal = torch.full((6, 6), torch.finfo(torch.float32).min).triu(1)[None, None]
    for config_class, attention_class, qk_norm in (
        (LlamaConfig, LlamaAttention, None),
        (Qwen3Config, Qwen3Attention, "head"),
        (Olmo2Config, Olmo2Attention, "full"),
    ):
        config = config_class(
            hidden_size=24, num_attention_heads=4, num_key_value_heads=2, head_dim=8, attention_bias=True
        )
        config._attn_implementation = "eager"
        reference = attention_class(config, 0).eval()
        cos_sin = LlamaRotaryEmbedding(config)(x, torch.arange(6)[None])
        want = reference(x, position_embeddings=cos_sin, attention_mask=causal)[0]
        traits = {"qkv_bias": True, "out_bias": True, "qk_norm": qk_norm}
        changed = sizes(n_kv_heads=2, head_dim=8, norm_eps=config.rms_norm_eps, attention=traits)
        attention = build(part("attention", "gqa"), changed, RMS)
        pairs = {"q": reference.q_proj, "k": reference.k_proj, "v": reference.v_proj, "out": reference.o_proj}
        if qk_norm:
            pairs |= {"q_norm": reference.q_norm, "k_norm": reference.k_norm}
        copy(attention, **pairs)
        for kernel in kernels():
            close(attention(x, view(6, rope(8), kernel=kernel)), want)


def test_each_head_may_have_a_norm_of_its_own_as_in_stablelm():
    from transformers import StableLmConfig
    from transformers.models.stablelm.modeling_stablelm import StableLmAttention, StableLmRotaryEmbedding

    config = StableLmConfig(
        hidden_size=24, num_attention_heads=4, num_key_value_heads=2, qk_layernorm=True, partial_rotary_factor=1.0
    )
    config._attn_implementation = "eager"
    reference = StableLmAttention(config, 0).eval()
    traits = sizes(n_kv_heads=2, norm_eps=config.layer_norm_eps, attention={"qk_norm": "each_head"})
    attention = build(part("attention", "gqa"), traits, part("norm", "layernorm"))
    copy(attention, q=reference.q_proj, k=reference.k_proj, v=reference.v_proj, out=reference.o_proj)
    for ours, theirs in ((attention.q_norm, reference.q_layernorm), (attention.k_norm, reference.k_layernorm)):
        theirs.load_state_dict({f"norms.{name}": tensor for name, tensor in ours.state_dict().items()})
    x = randn(2, 6, 24)
    causal = torch.full((6, 6), torch.finfo(torch.float32).min).triu(1)[None, None]
    cos_sin = StableLmRotaryEmbedding(config)(x, torch.arange(6)[None])
    close(attention(x, view(6, rope(6))), reference(x, position_embeddings=cos_sin, attention_mask=causal)[0])


def test_equals_t5_in_both_directions_and_across():
    from transformers import T5Config
    from transformers.models.t5.modeling_t5 import T5Attention

    config = T5Config(d_model=24, d_kv=6, num_heads=4, is_decoder=False)
    config._attn_implementation = "eager"
    reference = T5Attention(config, has_relative_attention_bias=True, layer_idx=0).eval()
    attention = build(part("attention", "mha"), sizes(attention={"scale": 1.0}), RMS)
    copy(attention, q=reference.q, k=reference.k, v=reference.v, out=reference.o)
    position = copy(build(part("position", "t5_bias"), sizes(causal=False)), table=reference.relative_attention_bias)
    x, source = randn(2, 6, 24), randn(2, 4, 24, seed=2)
    for kernel in kernels():
        close(attention(x, view(6, position, mask="bidirectional", kernel=kernel)), reference(x)[0])
    reference.has_relative_attention_bias = False
    want = reference(x, key_value_states=source)[0]
    close(attention(x, view(6, mask="bidirectional"), source), want)


@pytest.mark.parametrize("q_rank", [None, 10])
def test_equals_deepseek(q_rank):
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding

    config = DeepseekV3Config(
        hidden_size=24,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=q_rank,
        kv_lora_rank=12,
        qk_nope_head_dim=6,
        qk_rope_head_dim=4,
        v_head_dim=5,
        attention_bias=True,
    )
    config._attn_implementation = "eager"
    reference = DeepseekV3Attention(config, 0).eval()
    x = randn(2, 6, 24)
    causal = torch.full((6, 6), torch.finfo(torch.float32).min).triu(1)[None, None]
    cos_sin = DeepseekV3RotaryEmbedding(config)(x, torch.arange(6)[None])
    want = reference(x, attention_mask=causal, position_embeddings=cos_sin)[0]

    mla = part("attention", "mla", q_rank=q_rank, kv_rank=12, nope_dim=6, rope_dim=4, v_dim=5)
    attention = build(mla, sizes(attention={"qkv_bias": True, "out_bias": True}), RMS)
    pairs = {"kv_down": reference.kv_a_proj_with_mqa, "kv_norm": reference.kv_a_layernorm, "kv_up": reference.kv_b_proj}
    if q_rank is None:
        pairs |= {"q": reference.q_proj}
    else:
        pairs |= {"q_down": reference.q_a_proj, "q_norm": reference.q_a_layernorm, "q_up": reference.q_b_proj}
    copy(attention, out=reference.o_proj, **pairs)
    position = rope(4, interleaved=True)
    for kernel in kernels():
        close(attention(x, view(6, position, kernel=kernel)), want)


def test_mla_without_options_takes_its_widths_from_the_head():
    attention = build(part("attention", "mla"), sizes(head_dim=12), RMS)
    assert {name: tuple(p.shape) for name, p in attention.named_parameters()} == {
        "q.weight": (4 * (12 + 6), 24),
        "kv_down.weight": (48 + 6, 24),
        "kv_norm.weight": (48,),
        "kv_up.weight": (4 * (12 + 12), 48),
        "out.weight": (24, 4 * 12),
    }
    assert part("attention", "mla").func.rotary_width(sizes(head_dim=12)) == 6
    assert part("attention", "mla").func.rotary_width(sizes(head_dim=10), rope_dim=8) == 8
    assert part("attention", "mla").func.rotary_width(sizes(head_dim=10)) == 4
    assert attention.score.scale == 18**-0.5


POSITIONS = {
    "none": lambda width: Position(),
    "rope": rope,
    "dynamic": lambda width: rope(width, scaling="dynamic", factor=2.0, original_max=4),
    "dual_chunk": lambda width: part("position", "dual_chunk", chunk=3, local=2)(sizes(rotary_dim=width)),
    "alibi": lambda width: part("position", "alibi")(sizes()),
}


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("name", ATTENTIONS)
def test_cached_equals_uncached(name, position):
    """Three calls over a cache against one call of each length; the cache holds what the papers say."""
    # dynamic needs more than the two dims that mla would rotate of a head of 6.
    options = {"rope_dim": 4} if (name, position) == ("mla", "dynamic") else {}
    attention = build(part("attention", name, **options), sizes(n_kv_heads=2), RMS)
    width = getattr(attention, "rope_dim", 6)
    place, x, cache = POSITIONS[position](width), randn(2, 9, 24), LayerCache(9)
    for start, end in ((0, 5), (5, 6), (6, 9)):
        got = attention(x[:, start:end], view(end - start, place, offset=start), cache=cache)
        close(got, attention(x[:, :end], view(end, place))[:, start:], 1e-5)
    per_token = sum(b.numel() for b in cache.buffers) // (2 * 9)
    assert per_token == {"mha": 2 * 4 * 6, "gqa": 2 * 2 * 6, "mqa": 2 * 6, "mla": 4 * 6 + width}[name]


@pytest.mark.parametrize("name", ATTENTIONS)
def test_cross_attention_projects_its_source_once(name):
    attention = build(part("attention", name), sizes(n_kv_heads=2), RMS)
    x, source, cache = randn(2, 4, 24), randn(2, 3, 24, seed=2), LayerCache(0)
    whole = attention(x, view(4, mask="bidirectional"), source)
    for t in range(4):
        got = attention(x[:, t : t + 1], view(1, mask="bidirectional"), source if t == 0 else source * 0, cache)
        close(got, whole[:, t : t + 1])
    assert cache.length == 3


@pytest.mark.parametrize("name", ATTENTIONS)
def test_roles(name):
    roles = {
        key: m.role for key, m in build(part("attention", name), sizes(), RMS).named_children() if hasattr(m, "role")
    }
    want = {"q": "q", "kv_down": "k", "kv_up": "v"} if name == "mla" else {"q": "q", "k": "k", "v": "v"}
    assert roles == {**want, "out": "out"}


def test_a_wrong_trait_is_refused():
    with pytest.raises(ValueError, match=r"model\.n_kv_heads=3 does not divide model\.n_heads=4"):
        part("attention", "gqa")(sizes(n_kv_heads=3), RMS)
    with pytest.raises(
        ValueError, match=r"model\.attention\.qk_norm must be head, each_head, full or null, but is 'heads'"
    ):
        part("attention", "mha")(sizes(attention={"qk_norm": "heads"}), RMS)
