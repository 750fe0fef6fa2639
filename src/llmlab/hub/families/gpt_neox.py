"""GPT-NeoX and Pythia: q, k and v fused a head at a time, sublayers in parallel or one after the other."""

from __future__ import annotations

from llmlab.config.spec import ModelSpec
from llmlab.hub.entry import Config, Entry, activation, rope, rope_parameters, settings
from llmlab.hub.families.decoder import HEADS, classes
from llmlab.hub.families.gpt2 import ACTIVATIONS, act_name
from llmlab.hub.rules import grouped, linear, same

OURS, THEIRS = "stacks.main.layers.{i}.", "gpt_neox.layers.{i}."

RULES = [
    same("stacks.main.embedding.table.weight", "gpt_neox.embed_in.weight"),
    *linear(OURS + "block.attention_norm", THEIRS + "input_layernorm"),
    *linear(OURS + "block.ffn_norm", THEIRS + "post_attention_layernorm"),
    # Rows of query_key_value go head by head, (heads, 3, head_dim), not all queries first.
    *grouped([OURS + f"attention.{n}" for n in "qkv"], THEIRS + "attention.query_key_value"),
    *linear(OURS + "attention.out", THEIRS + "attention.dense"),
    *linear(OURS + "ffn.up", THEIRS + "mlp.dense_h_to_4h"),
    *linear(OURS + "ffn.down", THEIRS + "mlp.dense_4h_to_h"),
    *linear("stacks.main.norm", "gpt_neox.final_layer_norm"),
    # In transformers 5.24 the attribute is lm_head, and embed_out only the name in files:
    # conversion_mapping.py renames both ways.
    same("heads.tokens.out.weight", "embed_out.weight"),
    *HEADS,
]
DEFAULTS: Config = {
    "vocab_size": 50432,
    "hidden_size": 6144,
    "num_hidden_layers": 44,
    "num_attention_heads": 64,
    "intermediate_size": 24576,
    "hidden_act": "gelu",
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "max_position_embeddings": 2048,
    "layer_norm_eps": 1e-5,
    "pad_token_id": None,
    "tie_word_embeddings": False,
    "use_parallel_residual": True,
    "attention_bias": True,
}


def _rope(c: Config) -> Config:
    """Under names of its own at the top; the reference reads no others there."""
    # GPTNeoXConfig.convert_rope_params_to_dict takes these two names: rope_theta at the top has no effect there.
    return rope(c, partial=0.25, theta_key="rotary_emb_base", share_key="rotary_pct")


def read(c: Config) -> list[str]:
    values = {
        "dim": c["hidden_size"],
        "n_layers": c["num_hidden_layers"],
        "n_heads": c["num_attention_heads"],
        "ffn_dim": c["intermediate_size"],
        "max_positions": c["max_position_embeddings"],
        "vocab_size": c["vocab_size"],
        "norm_eps": c["layer_norm_eps"],
        "tie_embeddings": c["tie_word_embeddings"],
        "dropout": c["hidden_dropout"],
        "attention.dropout": c["attention_dropout"],
        "attention.qkv_bias": c["attention_bias"],
        "attention.out_bias": c["attention_bias"],
    }
    return [
        "model=gpt_neox",
        f"ffn={activation(c, 'hidden_act', ACTIVATIONS, 'gelu')}",
        # Parallel sublayers, each behind a norm of its own, where Phi and Falcon 7B share one.
        f"block={'parallel_norms_2' if c['use_parallel_residual'] else 'pre'}",
        *settings("model", values),
        *settings("position", _rope(c)),
    ]


def write(spec: ModelSpec) -> Config:
    s, parts = spec.sizes, spec.stacks[0].layers[0].parts
    return {
        "model_type": "gpt_neox",
        "hidden_size": s.dim,
        "num_hidden_layers": s.n_layers,
        "num_attention_heads": s.n_heads,
        "intermediate_size": s.ffn_dim,
        "max_position_embeddings": s.max_positions,
        "vocab_size": s.vocab_size,
        "layer_norm_eps": s.norm_eps,
        "tie_word_embeddings": s.tie_embeddings,
        "hidden_dropout": s.dropout,
        "attention_dropout": s.attention.dropout,
        "attention_bias": s.attention.qkv_bias,
        "hidden_act": act_name(parts["ffn"].name),
        "use_parallel_residual": parts["block"].name == "parallel",
        "rope_parameters": rope_parameters(parts["position"].options, s.max_positions, partial=True),
    }


ENTRIES = [
    Entry(
        model_types=("gpt_neox",),
        families=("gpt_neox",),
        read=read,
        write=write,
        defaults=DEFAULTS,
        rules=RULES,
        architectures=classes("GPTNeoX"),
        prefix="gpt_neox.",
        # Pythia's files hold all three: the triangle of ones, the number that is masked with, and the frequencies.
        ignore=(r"\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$",),
        head_key="embed_out.weight",
        embed_key="gpt_neox.embed_in.weight",
    )
]
