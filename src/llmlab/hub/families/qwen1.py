"""Qwen 1 in its authors' files. transformers has no such model."""

from __future__ import annotations

from llmlab.config.spec import ModelSpec
from llmlab.hub.entry import Config, Entry, expect, settings
from llmlab.hub.families.decoder import LM
from llmlab.hub.rules import fused, linear, same

OURS, THEIRS = "stacks.main.layers.{i}.", "transformer.h.{i}."
RULES = [
    same("stacks.main.embedding.table.weight", "transformer.wte.weight"),
    same("stacks.main.norm.weight", "transformer.ln_f.weight"),
    same("heads.tokens.out.weight", "lm_head.weight"),
    same(OURS + "block.attention_norm.weight", THEIRS + "ln_1.weight"),
    same(OURS + "block.ffn_norm.weight", THEIRS + "ln_2.weight"),
    # "c_attn" as in GPT-2, but a Linear: its weight is (out, in) and is not transposed.
    *fused([OURS + f"attention.{n}" for n in "qkv"], THEIRS + "attn.c_attn"),
    *linear(OURS + "attention.out", THEIRS + "attn.c_proj"),
    # QWenMLP multiplies w1(x) by silu(w2(x)), so w2 is the gate.
    *linear(OURS + "ffn.up", THEIRS + "mlp.w1"),
    *linear(OURS + "ffn.gate", THEIRS + "mlp.w2"),
    *linear(OURS + "ffn.down", THEIRS + "mlp.c_proj"),
]
DEFAULTS: Config = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "emb_dropout_prob": 0.0,
    "attn_dropout_prob": 0.0,
    "layer_norm_epsilon": 1e-6,
    "seq_length": 8192,
    "scale_attn_weights": True,
    "kv_channels": 128,
    "rotary_pct": 1.0,
    "rotary_emb_base": 10000.0,
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
    "intermediate_size": 22016,
    "no_bias": True,
    "tie_word_embeddings": False,
    "pad_token_id": None,
}


def read(c: Config) -> list[str]:
    expect(c, "scale_attn_weights", True)
    expect(c, "emb_dropout_prob", 0)
    expect(c, "use_cache_quantization", False, None)
    bias = not c["no_bias"]
    values = {
        "dim": c["hidden_size"],
        "n_layers": c["num_hidden_layers"],
        "n_heads": c["num_attention_heads"],
        "head_dim": c["kv_channels"],
        # The authors count w1 and w2 together: each has intermediate_size // 2 outputs (QWenMLP).
        "ffn_dim": c["intermediate_size"] // 2,
        "max_positions": c["seq_length"],
        "vocab_size": c["vocab_size"],
        "norm_eps": c["layer_norm_epsilon"],
        "tie_embeddings": c["tie_word_embeddings"],
        "attention.dropout": c["attn_dropout_prob"],
        # no_bias takes away all biases but those on q, k and v, which Qwen kept up to Qwen2.
        "attention.qkv_bias": True,
        "attention.out_bias": bias,
        "ffn.bias": bias,
    }
    position = {
        "theta": float(c["rotary_emb_base"]),
        "fraction": float(c["rotary_pct"]),
        # Alpha is 2 ** ceil(log2(length / seq_length) + 1) - 1 (get_ntk_alpha): it grows in steps, where
        # transformers' dynamic NTK grows with each token.
        "scaling": "dynamic_steps" if c["use_dynamic_ntk"] else "none",
        "log_n": c["use_logn_attn"],
        "original_max": c["seq_length"],
    }
    return ["model=qwen1", *settings("model", values), *settings("position", position)]


def write(spec: ModelSpec) -> Config:
    s = spec.sizes
    position = spec.stacks[0].layers[0].parts["position"].options
    return {
        "model_type": "qwen",
        "hidden_size": s.dim,
        "num_hidden_layers": s.n_layers,
        "num_attention_heads": s.n_heads,
        "kv_channels": s.head_dim,
        # Both halves together, as `read` takes them apart.
        "intermediate_size": 2 * s.ffn_dim,
        "seq_length": position.get("original_max") or s.max_positions,
        "max_position_embeddings": s.max_positions,
        "vocab_size": s.vocab_size,
        "layer_norm_epsilon": s.norm_eps,
        "tie_word_embeddings": s.tie_embeddings,
        "attn_dropout_prob": s.attention.dropout,
        "emb_dropout_prob": 0.0,
        "no_bias": not s.attention.out_bias,
        "scale_attn_weights": True,
        "rotary_emb_base": position.get("theta", 10000.0),
        "rotary_pct": position.get("fraction", 1.0),
        "use_dynamic_ntk": position.get("scaling") == "dynamic_steps",
        "use_logn_attn": position.get("log_n", False),
    }


ENTRIES = [
    Entry(
        model_types=("qwen",),
        families=("qwen1",),
        read=read,
        write=write,
        rules=RULES,
        architectures={"QWenLMHeadModel": LM},
        defaults=DEFAULTS,
        prefix="transformer.",
        ignore=(r"rotary_emb\.inv_freq$", r"attn\.masked_bias$"),
        head_key="lm_head.weight",
        embed_key="transformer.wte.weight",
    )
]
