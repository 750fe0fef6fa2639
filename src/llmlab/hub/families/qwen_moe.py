"""Qwen3-MoE, and Qwen2-MoE with its gated shared expert."""

from __future__ import annotations

from llmlab.config.spec import ModelSpec
from llmlab.hub.entry import Config, rope, settings
from llmlab.hub.families.llama import (
    ATTENTION,
    FFN,
    NORMS,
    OLD_SPANS,
    OURS,
    THEIRS,
    base,
    gate,
    gate_name,
    layout,
    routed,
    sizes,
    turned,
)
from llmlab.hub.rules import same
from llmlab.hub.windows import KINDS, read_windows, write_windows

DEFAULTS: Config = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "attention_dropout": 0.0,
    "decoder_sparse_step": 1,
    "norm_topk_prob": False,
    "router_aux_loss_coef": 0.001,
    "mlp_only_layers": [],
    "pad_token_id": None,
}
QWEN2: Config = {
    **DEFAULTS,
    "intermediate_size": 5632,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
    "num_experts_per_tok": 4,
    # Qwen1.5-MoE-A2.7B's: 60 experts of 1,408, and a shared one that is four times as wide.
    "num_experts": 60,
    "qkv_bias": True,
}
QWEN3: Config = {
    **DEFAULTS,
    "intermediate_size": 6144,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "sliding_window": 4096,
    "moe_intermediate_size": 768,
    "num_experts_per_tok": 8,
    # Qwen3MoeConfig maps num_experts to this name; published files say num_experts, and `_read` takes either.
    "num_local_experts": 128,
    "attention_bias": False,
}


def _layers(c: Config, types: list[str]) -> list[str]:
    """Layer i is routed if (i + 1) is a multiple of decoder_sparse_step and it is not listed as dense."""
    windows = read_windows(types, c["sliding_window"])
    step, dense = c["decoder_sparse_step"], set(c["mlp_only_layers"] or ())
    routed = [i not in dense and (i + 1) % step == 0 for i in range(c["num_hidden_layers"])]
    if all(routed):
        return windows
    names = ["moe" if r else "dense" for r in routed]
    if len(set(types)) > 1:
        names = [f"{name}_{KINDS[t]}" for name, t in zip(names, types, strict=False)]
        windows = []
    out = [*windows]
    for name in dict.fromkeys(names):
        out.append(f"+moe@kinds.{name}.moe={'topk' if name.startswith('moe') else 'none'}")
        if name.endswith("_local"):
            out += [f"+window@kinds.{name}.window=sliding", f"kinds.{name}.window.left={c['sliding_window']}"]
        elif name.endswith("_global"):
            out.append(f"+window@kinds.{name}.window=full")
    return [*out, f"layers.first=[{','.join(names)}]"]


def _types(c: Config, qwen2: bool) -> list[str]:
    """Qwen2-MoE slides in the even layers below max_window_layers, Qwen3-MoE in all; only with use_sliding_window."""
    n, slides = c["num_hidden_layers"], c["use_sliding_window"] and c["sliding_window"]
    if qwen2 and c.get("layer_types"):
        return c["layer_types"]
    # Qwen2MoeConfig: (i + 1) % 2 and i < max_window_layers. Qwen2 has it the other way round, i >= max_window_layers.
    local = [slides and not (qwen2 and (i % 2 or i >= c["max_window_layers"])) for i in range(n)]
    return ["sliding_attention" if slide else "full_attention" for slide in local]


def _read(c: Config, family: str, qk_norm: str | None, shared: bool) -> list[str]:
    experts = c.get("num_experts", c.get("num_local_experts"))
    values = sizes(c)
    values["attention.qkv_bias"] = c["qkv_bias"] if shared else c["attention_bias"]
    # Qwen2MoeAttention has no bias on its output, and calls the key of the others
    # qkv_bias; Qwen3's has one key for all four.
    values["attention.out_bias"] = False if shared else c["attention_bias"]
    values["attention.qk_norm"] = qk_norm
    values |= {
        "moe.n_experts": experts,
        "moe.per_token": c["num_experts_per_tok"],
        "moe.ffn_dim": c["moe_intermediate_size"],
        # False in both classes, though Qwen3's published files say true: a bare config is routed
        # by probabilities that don't add up to 1.
        "moe.renormalise": c["norm_topk_prob"],
        "moe.balance": c["router_aux_loss_coef"],
    }
    if shared:
        values["moe.shared_dim"] = c["shared_expert_intermediate_size"]
    return [
        f"model={family}",
        gate(c),
        *settings("model", values),
        *settings("position", rope(c)),
        *_layers(c, _types(c, shared)),
    ]


def _write(spec: ModelSpec) -> Config:
    s = spec.sizes
    dense = [i for i, layer in enumerate(spec.stacks[0].layers) if layer.parts["moe"].name == "none"]
    return {
        **base(spec),
        "hidden_act": gate_name(spec),
        "moe_intermediate_size": s.moe.ffn_dim,
        "num_experts": s.moe.n_experts,
        "num_experts_per_tok": s.moe.per_token,
        "norm_topk_prob": s.moe.renormalise,
        "router_aux_loss_coef": s.moe.balance,
        "mlp_only_layers": dense,
        # All layers routed but those listed above: a list says every pattern, a step only regular ones.
        "decoder_sparse_step": 1,
        "rope_parameters": turned(spec),
    }


def write_qwen3(spec: ModelSpec) -> Config:
    out = {"model_type": "qwen3_moe", **_write(spec), "attention_bias": spec.sizes.attention.qkv_bias}
    # Qwen3MoeConfig knows no layer_types: all layers slide or none, and another pattern is found out by reading back.
    left = write_windows(spec)[1]
    return out | {"use_sliding_window": left is not None, "sliding_window": left}


def write_qwen2(spec: ModelSpec) -> Config:
    moe = spec.sizes.moe
    types, left = write_windows(spec)
    return {
        "model_type": "qwen2_moe",
        **_write(spec),
        "qkv_bias": spec.sizes.attention.qkv_bias,
        "shared_expert_intermediate_size": moe.shared_dim or moe.n_shared * (moe.ffn_dim or 0),
        "use_sliding_window": left is not None,
        "sliding_window": left,
        "layer_types": types,
    }


# One number a token, sigmoid of a linear without bias (Qwen2MoeSparseMoeBlock); Qwen3-MoE has no shared expert at all.
SHARED_GATE = same(OURS + "ffn.shared_gate.weight", THEIRS + "mlp.shared_expert_gate.weight")
RULES = [*NORMS, *ATTENTION, *FFN, *routed("shared_expert"), SHARED_GATE]
ENTRIES = [
    layout(
        "Qwen3Moe",
        "qwen3_moe",
        ("qwen_moe",),
        RULES,
        read=lambda c: _read(c, "qwen_moe", "head", shared=False),
        write=write_qwen3,
        defaults=QWEN3,
        spans=OLD_SPANS,
    ),
    layout(
        "Qwen2Moe",
        "qwen2_moe",
        ("qwen2_moe",),
        RULES,
        read=lambda c: _read(c, "qwen2_moe", None, shared=True),
        write=write_qwen2,
        defaults=QWEN2,
    ),
]
