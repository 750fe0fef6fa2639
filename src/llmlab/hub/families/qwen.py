"""Qwen2 and Qwen3."""

from __future__ import annotations

from llmlab.config.spec import ModelSpec
from llmlab.hub.entry import Config, rope, settings
from llmlab.hub.families.llama import ATTENTION, FFN, NORMS, OLD_SPANS, base, gate, gate_name, layout, sizes, turned
from llmlab.hub.windows import read_windows, write_windows

QWEN2: Config = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "attention_dropout": 0.0,
    "pad_token_id": None,
}
# Qwen3Config has heads of 128 whatever the width; Qwen2Config has no head_dim and divides the width by the heads.
QWEN3: Config = {**QWEN2, "head_dim": 128, "attention_bias": False}


def _read(c: Config, family: str) -> list[str]:
    values = sizes(c)
    # Qwen2 has biases on q, k and v and none on the output, whatever config.json says; Qwen3 has one key for all four.
    values["attention.qkv_bias"] = family == "qwen2" or c["attention_bias"]
    values["attention.out_bias"] = family == "qwen3" and c["attention_bias"]
    return [
        f"model={family}",
        gate(c),
        *read_windows(_types(c), c["sliding_window"]),
        *settings("model", values),
        *settings("position", rope(c)),
    ]


def _types(c: Config) -> list[str]:
    """Layers from max_window_layers on slide, if any do."""
    if c.get("layer_types"):
        return c["layer_types"]
    slides = c["use_sliding_window"] and c["sliding_window"]
    # The published Qwen2 files state sliding_window but use_sliding_window=false, which
    # makes it None (Qwen2Config.__post_init__).
    first = c["max_window_layers"] if slides else c["num_hidden_layers"]
    return ["sliding_attention" if i >= first else "full_attention" for i in range(c["num_hidden_layers"])]


def _write(spec: ModelSpec, kind: str) -> Config:
    types, left = write_windows(spec)
    return {
        "model_type": kind,
        **base(spec),
        "hidden_act": gate_name(spec),
        # Qwen2Config does not know the key, and reads a file that has it without a word.
        **({"attention_bias": spec.sizes.attention.qkv_bias} if kind == "qwen3" else {}),
        "use_sliding_window": left is not None,
        "sliding_window": left,
        "layer_types": types,
        "rope_parameters": turned(spec),
    }


RULES = [*NORMS, *ATTENTION, *FFN]
ENTRIES = [
    layout(
        "Qwen2",
        "qwen2",
        ("qwen2",),
        RULES,
        read=lambda c: _read(c, "qwen2"),
        write=lambda spec: _write(spec, "qwen2"),
        defaults=QWEN2,
        spans=OLD_SPANS,
    ),
    layout(
        "Qwen3",
        "qwen3",
        ("qwen3",),
        RULES,
        read=lambda c: _read(c, "qwen3"),
        write=lambda spec: _write(spec, "qwen3"),
        defaults=QWEN3,
        spans=OLD_SPANS,
    ),
]
