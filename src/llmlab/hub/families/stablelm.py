"""StableLM: LLaMA's layout with layer norms, some of a head turned, sublayers in parallel behind one norm or not."""

from __future__ import annotations

import warnings

from llmlab.config.spec import ModelSpec
from llmlab.hub.entry import Config, Entry, activation, n_kv_heads, rope, rope_parameters, settings
from llmlab.hub.families.decoder import GENERIC_HEADS, SPANS, classes
from llmlab.hub.families.llama import ATTENTION, FFN
from llmlab.hub.rules import Rule, linear, same

OURS, THEIRS = "stacks.main.layers.{i}.", "model.layers.{i}."
ACTIVATIONS = {
    "silu": "swiglu",
    "gelu": "geglu",
    "gelu_new": "geglu_tanh",
    "gelu_pytorch_tanh": "geglu_tanh",
    "relu": "reglu",
}

RULES: list[Rule] = [
    same("stacks.main.embedding.table.weight", "model.embed_tokens.weight"),
    # With parallel sublayers one norm serves both, and post_attention_layernorm is not built (StableLmDecoderLayer).
    *linear(OURS + "block.norm", THEIRS + "input_layernorm"),
    *linear(OURS + "block.attention_norm", THEIRS + "input_layernorm"),
    *linear(OURS + "block.ffn_norm", THEIRS + "post_attention_layernorm"),
    # A norm for each head, without bias (StableLmLayerNormPerHead).
    *(
        same(OURS + f"attention.{n}_norm.{{h}}.weight", THEIRS + f"self_attn.{n}_layernorm.norms.{{h}}.weight")
        for n in "qk"
    ),
    *ATTENTION,
    *FFN,
    *linear("stacks.main.norm", "model.norm"),
    same("heads.tokens.out.weight", "lm_head.weight"),
    *GENERIC_HEADS,
]
DEFAULTS: Config = {
    "vocab_size": 50304,
    "intermediate_size": 6912,
    "hidden_size": 2560,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "layer_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "use_qkv_bias": False,
    "qk_layernorm": False,
    "use_parallel_residual": False,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "pad_token_id": None,
}


def read(c: Config) -> list[str]:
    heads, kv = c["num_attention_heads"], c["num_key_value_heads"] or c["num_attention_heads"]
    # StableLmConfig sets partial_rotary_factor to 0.25 where a file lacks it. Half of the rotated dims turns
    # against the other half, so their number is even.
    position = rope(c, partial=0.25, even=c["hidden_size"] // heads)
    # StabilityAI's first files say `rope_pct`; transformers reads partial_rotary_factor alone.
    if c.get("rope_pct", position["fraction"]) != position["fraction"]:
        warnings.warn(f"config.json: rope_pct={c['rope_pct']} is not read, as by transformers", stacklevel=2)
    values = {
        "dim": c["hidden_size"],
        "n_layers": c["num_hidden_layers"],
        "n_heads": heads,
        "n_kv_heads": kv,
        "ffn_dim": c["intermediate_size"],
        "max_positions": c["max_position_embeddings"],
        "vocab_size": c["vocab_size"],
        "norm_eps": c["layer_norm_eps"],
        "tie_embeddings": c["tie_word_embeddings"],
        # In the reference on the feed-forward's output alone (StableLmDecoderLayer);
        # training here drops out both sublayers.
        "dropout": c["hidden_dropout"],
        "attention.dropout": c["attention_dropout"],
        "attention.qkv_bias": c["use_qkv_bias"],
        # StableLM 2 12B: one norm for each head with weights of its own, where Phi's and Qwen3's heads share theirs.
        "attention.qk_norm": "each_head" if c["qk_layernorm"] else None,
    }
    return [
        "model=stablelm",
        f"ffn={activation(c, 'hidden_act', ACTIVATIONS, 'silu')}",
        f"block={'parallel' if c['use_parallel_residual'] else 'pre'}",
        f"attention={'mha' if kv == heads else 'gqa'}",
        *settings("model", values),
        *settings("position", position),
    ]


def write(spec: ModelSpec) -> Config:
    s, parts = spec.sizes, spec.stacks[0].layers[0].parts
    # Reversed, so that of two names for one activation the first is written.
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    return {
        "model_type": "stablelm",
        "hidden_size": s.dim,
        "num_hidden_layers": s.n_layers,
        "num_attention_heads": s.n_heads,
        "num_key_value_heads": n_kv_heads(spec),
        "intermediate_size": s.ffn_dim,
        "max_position_embeddings": s.max_positions,
        "vocab_size": s.vocab_size,
        "layer_norm_eps": s.norm_eps,
        "tie_word_embeddings": s.tie_embeddings,
        "hidden_dropout": s.dropout,
        "attention_dropout": s.attention.dropout,
        "hidden_act": names.get(parts["ffn"].name, "silu"),
        "use_qkv_bias": s.attention.qkv_bias,
        "qk_layernorm": s.attention.qk_norm == "each_head",
        "use_parallel_residual": parts["block"].name == "parallel",
        "rope_parameters": rope_parameters(parts["position"].options, s.max_positions, partial=True),
        # Null, since StableLmConfig would fill in 0 for both, whatever token that is here.
        "bos_token_id": None,
        "eos_token_id": None,
    }


ENTRIES = [
    Entry(
        model_types=("stablelm",),
        families=("stablelm",),
        read=read,
        write=write,
        defaults=DEFAULTS,
        rules=RULES,
        architectures=classes("StableLm", lacks=(SPANS,)),
        prefix="model.",
        ignore=(r"rotary_emb\.inv_freq$",),
        head_key="lm_head.weight",
        embed_key="model.embed_tokens.weight",
    )
]
