"""GLM-4 as transformers has it: `glm` (the 2024 release) and `glm4` (the 2025 one, with four norms a layer)."""

from __future__ import annotations

from llmlab.config.spec import ModelSpec
from llmlab.hub.entry import Config, rope, settings
from llmlab.hub.families.decoder import SPANS
from llmlab.hub.families.llama import ATTENTION, NORMS, OURS, THEIRS, base, gate, gate_name, layout, sizes, turned
from llmlab.hub.families.phi3 import FUSED_FFN
from llmlab.hub.rules import same

DEFAULTS: Config = {
    "vocab_size": 151552,
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    # GlmConfig's defaults are those of GLM-4-9B: two key heads, and the odd epsilon of 1.5625e-07.
    "num_key_value_heads": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1.5625e-07,
    "tie_word_embeddings": False,
    "pad_token_id": 151329,
    "attention_bias": True,
}
FOUR_NORMS = [
    same(OURS + "block.attention_norm.weight", THEIRS + "input_layernorm.weight"),
    # Four norms, of which "post_attention_layernorm" is the one before the feed-forward,
    # as in LLaMA (Glm4DecoderLayer.forward).
    same(OURS + "block.attention_post_norm.weight", THEIRS + "post_self_attn_layernorm.weight"),
    same(OURS + "block.ffn_norm.weight", THEIRS + "post_attention_layernorm.weight"),
    same(OURS + "block.ffn_post_norm.weight", THEIRS + "post_mlp_layernorm.weight"),
]


def _read(c: Config, family: str) -> list[str]:
    # On q, k and v; GlmAttention gives its output bias=False whatever the file says.
    values = {**sizes(c), "attention.qkv_bias": c["attention_bias"]}
    # GlmConfig sets partial_rotary_factor to 0.5 where a file lacks it; neighbours are turned in pairs.
    position = rope(c, partial=0.5, interleaved=True)
    return [f"model={family}", gate(c), *settings("model", values), *settings("position", position)]


def _write(spec: ModelSpec, family: str) -> Config:
    return {
        "model_type": family,
        **base(spec),
        "hidden_act": gate_name(spec),
        "attention_bias": spec.sizes.attention.qkv_bias,
        "rope_parameters": turned(spec, partial=True),
        # Null, since GlmConfig would fill in 151,329, and nn.Embedding refuses a padding_idx for which it has no row.
        "pad_token_id": None,
    }


ENTRIES = [
    layout(
        "Glm",
        "glm",
        ("glm", "chatglm2"),
        [*NORMS, *ATTENTION, *FUSED_FFN],
        read=lambda c: _read(c, "glm"),
        write=lambda spec: _write(spec, "glm"),
        defaults=DEFAULTS,
        lacks=(SPANS,),
    ),
    layout(
        "Glm4",
        "glm4",
        ("glm4",),
        [*FOUR_NORMS, *ATTENTION, *FUSED_FFN],
        read=lambda c: _read(c, "glm4"),
        write=lambda spec: _write(spec, "glm4"),
        defaults=DEFAULTS,
        lacks=(SPANS,),
    ),
]
