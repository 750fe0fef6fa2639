"""OLMo, whose norms hold no weights, and OLMo 2, whose norms stand behind the sublayers."""

from __future__ import annotations

from llmlab.config.spec import ModelSpec
from llmlab.hub.entry import Config, rope, settings
from llmlab.hub.families.decoder import SPANS, TOKENS
from llmlab.hub.families.llama import ATTENTION, FFN, OURS, THEIRS, base, gate, gate_name, layout, sizes, turned
from llmlab.hub.rules import same

# OlmoLayerNorm passes eps=1e-5 to F.layer_norm as a literal.
EPS = 1e-5  # of OLMo's norms; config.json does not hold it
OLMO: Config = {
    "vocab_size": 50304,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    # OlmoConfig's default. `_write` gives null in its stead: 1 may be any token of another tokenizer.
    "pad_token_id": 1,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "clip_qkv": None,
}
OLMO2: Config = {**{key: value for key, value in OLMO.items() if key != "clip_qkv"}, "rms_norm_eps": 1e-5}
NORMS = [
    # Each follows its sublayer, x + norm(f(x)), and nothing is normed before it (Olmo2DecoderLayer).
    same(OURS + "block.attention_norm.weight", THEIRS + "post_attention_layernorm.weight"),
    same(OURS + "block.ffn_norm.weight", THEIRS + "post_feedforward_layernorm.weight"),
]


def _read(c: Config, family: str) -> list[str]:
    values = sizes(c)
    values["attention.qkv_bias"] = values["attention.out_bias"] = c["attention_bias"]
    # Olmo2Attention has no clamp; in its stead it norms queries and keys over all heads together.
    if family == "olmo":
        values["attention.clip_qkv"] = c["clip_qkv"]
    return [f"model={family}", "attention=gqa", gate(c), *settings("model", values), *settings("position", rope(c))]


def _write(spec: ModelSpec, family: str) -> Config:
    out = {
        "model_type": family,
        **base(spec),
        "hidden_act": gate_name(spec),
        "attention_bias": spec.sizes.attention.qkv_bias,
        "rope_parameters": turned(spec),
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if family == "olmo":
        # OlmoConfig has no such key: the epsilon is the literal above, and a spec with
        # another one is refused on reading back.
        del out["rms_norm_eps"]
        out["clip_qkv"] = spec.sizes.attention.clip_qkv
    return out


ENTRIES = [
    layout(
        "Olmo",
        "olmo",
        ("olmo",),
        [*ATTENTION, *FFN],
        read=lambda c: _read({**c, "rms_norm_eps": EPS}, "olmo"),
        write=lambda spec: _write(spec, "olmo"),
        defaults=OLMO,
        lacks=(TOKENS, SPANS),
    ),
    layout(
        "Olmo2",
        "olmo2",
        ("olmo2",),
        [*NORMS, *ATTENTION, *FFN],
        read=lambda c: _read(c, "olmo2"),
        write=lambda spec: _write(spec, "olmo2"),
        defaults=OLMO2,
        lacks=(TOKENS, SPANS),
    ),
]
