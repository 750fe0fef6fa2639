"""DeepSeek-V3: latent attention, grouped sigmoid routing, first layers dense."""

from __future__ import annotations

import math

from llmlab.config.spec import ModelSpec
from llmlab.hub.entry import Config, expect, rope, settings
from llmlab.hub.families.decoder import SPANS
from llmlab.hub.families.llama import FFN, NORMS, OURS, THEIRS, base, gate, gate_name, layout, routed, sizes, turned
from llmlab.hub.rope import NUMBERS, parameters_of_all
from llmlab.hub.rules import linear, same

LATENT = [
    # Only where q_lora_rank is null, as in V2-Lite: then queries are not compressed.
    *linear(OURS + "attention.q", THEIRS + "self_attn.q_proj"),
    *linear(OURS + "attention.q_down", THEIRS + "self_attn.q_a_proj"),
    same(OURS + "attention.q_norm.weight", THEIRS + "self_attn.q_a_layernorm.weight"),
    *linear(OURS + "attention.q_up", THEIRS + "self_attn.q_b_proj"),
    # The latent and the rotated key in one product, which all heads share, "with_mqa"; the norm is on the latent alone.
    *linear(OURS + "attention.kv_down", THEIRS + "self_attn.kv_a_proj_with_mqa"),
    # Both inner norms keep the 1e-6 of DeepseekV3RMSNorm: the class hands them no rms_norm_eps.
    same(OURS + "attention.kv_norm.weight", THEIRS + "self_attn.kv_a_layernorm.weight"),
    *linear(OURS + "attention.kv_up", THEIRS + "self_attn.kv_b_proj"),
    *linear(OURS + "attention.out", THEIRS + "self_attn.o_proj"),
]
DEFAULTS: Config = {
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "n_shared_experts": 1,
    "n_routed_experts": 256,
    "routed_scaling_factor": 2.5,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "n_group": 8,
    "topk_group": 4,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "norm_topk_prob": True,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "pad_token_id": None,
    "tie_word_embeddings": False,
    "rope_interleave": True,
    "attention_bias": False,
    "attention_dropout": 0.0,
}
# A buffer, without a gradient: training moves it by the load of the experts (arXiv:2412.19437, section 2.1.2).
BIAS = same(OURS + "ffn.router.bias", THEIRS + "mlp.gate.e_score_correction_bias")


def _scale(c: Config, options: Config) -> float:
    """1 / sqrt(width of a query head), under any scaling of rope times (0.1 mscale_all_dim ln factor + 1)^2."""
    scale = (c["qk_nope_head_dim"] + c["qk_rope_head_dim"]) ** -0.5
    # yarn_apply_mscale asks for the key under every rope_type but "default", where rope itself reads it under YaRN alone.
    if options["scaling"] != "none" and options["factor"] > 1:
        key = "mscale_all_dim"
        amount = NUMBERS[key].of(key, parameters_of_all(c).get(key) or 0.0)
        scale *= (0.1 * amount * math.log(options["factor"]) + 1.0) ** 2
    return scale


def body(c: Config, *, interleaved: bool) -> list[str]:
    """Overrides that V2 and V3 share: sizes, latent attention, experts, and which layers have them."""
    # DeepSeek's own code can route every n-th layer; transformers does not read the key.
    expect(c, "moe_layer_freq", 1, default=1)
    options = rope(c, interleaved=interleaved)
    n, dense = c["num_hidden_layers"], c["first_k_dense_replace"]
    values = sizes(c)
    # Keys and values of all heads come from one latent, so num_key_value_heads says nothing.
    values.pop("n_kv_heads")
    values |= {
        "head_dim": c["v_head_dim"],
        "attention.scale": _scale(c, options),
        # On the projections down and the output; q_b_proj and kv_b_proj are built with bias=False.
        "attention.qkv_bias": c["attention_bias"],
        "attention.out_bias": c["attention_bias"],
        "moe.n_experts": c["n_routed_experts"],
        "moe.per_token": c["num_experts_per_tok"],
        "moe.ffn_dim": c["moe_intermediate_size"],
        "moe.n_shared": c["n_shared_experts"] or 0,
        "moe.scale": c["routed_scaling_factor"],
    }
    latent = {
        "q_rank": c["q_lora_rank"],
        "kv_rank": c["kv_lora_rank"],
        "nope_dim": c["qk_nope_head_dim"],
        "rope_dim": c["qk_rope_head_dim"],
        "v_dim": c["v_head_dim"],
    }
    return [
        gate(c),
        *settings("model", values),
        *settings("position", options),
        *settings("attention", latent),
        # The first layers are dense since the load of their experts would not balance soon
        # (DeepSeekMoE: arXiv:2401.06066, section 5.1.2).
        f"layers.first=[{','.join(['dense'] * min(dense, n))}]",
        f"layers.cycle=[{'moe' if dense < n else ''}]",
    ]


def read(c: Config) -> list[str]:
    # Keys of DeepSeek's own code; transformers has this one way each for V3 and reads neither.
    expect(c, "scoring_func", "sigmoid", default="sigmoid")
    expect(c, "topk_method", "noaux_tc", default="noaux_tc")
    return [
        "model=deepseek_v3",
        *body(c, interleaved=c["rope_interleave"]),
        f"model.moe.renormalise={str(c['norm_topk_prob']).lower()}",
        # Experts lie on devices group by group, and a token goes to the best few groups: to few
        # devices (arXiv:2412.19437, section 2.1.2).
        *settings("moe", {"groups": c["n_group"], "groups_kept": c["topk_group"]}),
    ]


def write(spec: ModelSpec) -> Config:
    s, layers = spec.sizes, spec.stacks[0].layers
    parts = layers[-1].parts
    routing, latent = parts["moe"].options, parts["attention"].options
    dense = next((i for i, layer in enumerate(layers) if layer.parts["moe"].name != "none"), len(layers))
    rope_dim = latent.get("rope_dim") or max(2, s.head_dim // 4 * 2)
    nope_dim = latent.get("nope_dim") or s.head_dim
    return {
        "model_type": "deepseek_v3",
        **base(spec),
        "num_key_value_heads": s.n_heads,
        # What transformers calls head_dim here is the width that is rotated (DeepseekV3Config).
        "head_dim": rope_dim,
        "hidden_act": gate_name(spec),
        "attention_bias": s.attention.qkv_bias,
        "q_lora_rank": latent.get("q_rank"),
        "kv_lora_rank": latent.get("kv_rank") or 4 * s.head_dim,
        "qk_nope_head_dim": nope_dim,
        "qk_rope_head_dim": rope_dim,
        "qk_head_dim": nope_dim + rope_dim,
        "v_head_dim": latent.get("v_dim") or s.head_dim,
        "n_routed_experts": s.moe.n_experts,
        "num_experts_per_tok": s.moe.per_token,
        "moe_intermediate_size": s.moe.ffn_dim,
        "n_shared_experts": s.moe.n_shared,
        "norm_topk_prob": s.moe.renormalise,
        "routed_scaling_factor": s.moe.scale,
        "n_group": routing.get("groups", 1),
        "topk_group": routing.get("groups_kept", 1),
        "first_k_dense_replace": dense,
        "rope_interleave": parts["position"].options.get("interleaved", False),
        "rope_parameters": turned(spec),
    }


ENTRIES = [
    layout(
        "DeepseekV3",
        "deepseek_v3",
        ("deepseek_v3",),
        [*NORMS, *LATENT, *FFN, *routed("shared_experts"), BIAS],
        read=read,
        write=write,
        defaults=DEFAULTS,
        lacks=(SPANS,),
        # The published files hold a layer past num_hidden_layers, for multi-token prediction; the reference drops it.
        extra_layers=True,
    )
]
