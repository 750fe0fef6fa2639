"""Gemma 3, text only: four norms a layer, local and global layers with a rope each."""

from __future__ import annotations

from llmlab.config.spec import ModelSpec
from llmlab.errors import UserError
from llmlab.hub.entry import Config, by_layer, check_heads, expect, rope, rope_parameters, settings
from llmlab.hub.families.decoder import SPANS, TOKENS
from llmlab.hub.families.llama import ATTENTION, FFN, OURS, THEIRS, base, gate, gate_name, layout, sizes
from llmlab.hub.rules import same

NAMES = {"sliding_attention": "local", "full_attention": "global"}
RULES = [
    same(OURS + "block.attention_norm.weight", THEIRS + "input_layernorm.weight"),
    # Behind the attention, where LLaMA's layers call the norm before the feed-forward so (Gemma2DecoderLayer.forward).
    same(OURS + "block.attention_post_norm.weight", THEIRS + "post_attention_layernorm.weight"),
    same(OURS + "block.ffn_norm.weight", THEIRS + "pre_feedforward_layernorm.weight"),
    same(OURS + "block.ffn_post_norm.weight", THEIRS + "post_feedforward_layernorm.weight"),
    *ATTENTION,
    *FFN,
]


DEFAULTS: Config = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "query_pre_attn_scalar": 256.0,
    "sliding_window": 4096,
    "final_logit_softcapping": None,
    "use_bidirectional_attention": False,
}


def _types(c: Config) -> list[str]:
    if c.get("layer_types"):
        for kind in c["layer_types"]:
            expect({"layer_types": kind}, "layer_types", *NAMES)
        return c["layer_types"]
    # Files on the Hub have the first name, what transformers 5 saves the second; Gemma3TextConfig's own default is 6.
    pattern: int = c.get("sliding_window_pattern") or c.get("_sliding_window_pattern") or 6
    return ["full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(c["num_hidden_layers"])]


THETAS = {"sliding_attention": ("rope_local_base_freq", 10000.0), "full_attention": ("rope_theta", 1e6)}


def _ropes(c: Config) -> tuple[Config, Config]:
    """Local and global. Older configs scale the global layers only."""
    # Gemma3TextConfig.convert_rope_params_to_dict puts an older rope_scaling into full_attention alone.
    blocks = by_layer(c, THETAS, scaled=("full_attention",))
    return rope(c, blocks["sliding_attention"]), rope(c, blocks["full_attention"])


def read(c: Config) -> list[str]:
    expect(c, "use_bidirectional_attention", False, None)
    values = sizes(c)
    values["attention.qkv_bias"] = values["attention.out_bias"] = c["attention_bias"]
    # The number is its head's width in all sizes but 27B, which has 168, the width over the heads, for heads of 128.
    values["attention.scale"] = c["query_pre_attn_scalar"] ** -0.5
    values["logit_softcap"] = c["final_logit_softcapping"]
    local, everywhere = _ropes(c)
    return [
        "model=gemma3",
        gate(c, "hidden_activation"),
        *settings("model", values),
        *settings("position", local),
        *settings("kinds.global.position", everywhere),
        f"kinds.local.window.left={c['sliding_window']}",
        f"layers.first=[{','.join(NAMES[t] for t in _types(c))}]",
        "layers.cycle=[]",
    ]


def scalar(spec: ModelSpec) -> int:
    """`query_pre_attn_scalar`, the attention's scale ** -2. UserError if that is no whole number."""
    scale = spec.sizes.attention.scale
    if scale is None:
        return spec.sizes.head_dim
    # The classes type it int, and transformers 5 refuses 11.1 there, and 256.0 (`@strict`); the
    # power gives a whole number back but for rounding.
    power = 1.0 / scale / scale  # infinity for the smallest, of which `**` has an OverflowError
    # No more than is read back (`config_ranges`).
    whole = max(1, round(min(power, 1e9)))
    # As closely as `difference` compares scales.
    if abs(power - whole) > 1e-12 * whole:
        raise UserError(
            f"model.attention.scale={scale} has no place in a Gemma config.json, whose query_pre_attn_scalar, the scale to "
            f"the power of -2, is a whole number; the nearest is {whole}, of model.attention.scale={whole**-0.5}"
        )
    return whole


def write(spec: ModelSpec) -> Config:
    check_heads(spec)
    s, layers = spec.sizes, spec.stacks[0].layers
    theirs = {ours: name for name, ours in NAMES.items()}
    first = {kind: next((la for la in layers if la.kind == kind), layers[0]) for kind in theirs}
    return {
        "model_type": "gemma3_text",
        **base(spec),
        "hidden_activation": gate_name(spec),
        "attention_bias": s.attention.qkv_bias,
        "query_pre_attn_scalar": scalar(spec),
        "final_logit_softcapping": s.logit_softcap,
        # As Gemma 2's: a number in any case.
        "sliding_window": first["local"].parts["window"].options.get("left") or DEFAULTS["sliding_window"],
        "layer_types": [theirs.get(layer.kind) for layer in layers],
        "rope_parameters": {
            theirs[kind]: rope_parameters(layer.parts["position"].options, s.max_positions)
            for kind, layer in first.items()
        },
    }


ENTRIES = [
    layout(
        # Gemma3Model and Gemma3ForSequenceClassification are of the model that reads images, with another config.json.
        "Gemma3Text",
        "gemma3_text",
        ("gemma3",),
        RULES,
        read=read,
        write=write,
        defaults=DEFAULTS,
        # The one class of text whose name does not say so.
        causal="Gemma3ForCausalLM",
        lacks=(TOKENS, SPANS),
    )
]
