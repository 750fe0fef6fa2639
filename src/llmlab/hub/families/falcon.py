"""Falcon: 7B (one norm, one head of keys), 40B and 11B (groups of heads, two norms or one), RW (ALiBi, one after the other)."""

from __future__ import annotations

from llmlab.config.spec import ModelSpec
from llmlab.hub.entry import Config, Entry, activation, expect, n_kv_heads, rope, rope_parameters, settings
from llmlab.hub.families.decoder import HEADS, classes
from llmlab.hub.families.gpt2 import ACTIVATIONS, act_name
from llmlab.hub.rules import grouped, linear, same

OURS, THEIRS = "stacks.main.layers.{i}.", "transformer.h.{i}."

RULES = [
    same("stacks.main.embedding.table.weight", "transformer.word_embeddings.weight"),
    # One name for the norm of parallel sublayers and for the first of two where they follow each other.
    *linear(OURS + "block.norm", THEIRS + "input_layernorm"),
    # Parallel sublayers with two norms have names of their own (FalconDecoderLayer), so these rules ask for the block.
    *linear(OURS + "block.attention_norm", THEIRS + "ln_attn", only="block=parallel"),
    *linear(OURS + "block.ffn_norm", THEIRS + "ln_mlp", only="block=parallel"),
    *linear(OURS + "block.attention_norm", THEIRS + "input_layernorm"),
    *linear(OURS + "block.ffn_norm", THEIRS + "post_attention_layernorm"),
    # Rows go group by group: a key head's queries, its key, its value (FalconAttention._split_heads).
    *grouped([OURS + f"attention.{n}" for n in "qkv"], THEIRS + "self_attention.query_key_value"),
    *linear(OURS + "attention.out", THEIRS + "self_attention.dense"),
    *linear(OURS + "ffn.up", THEIRS + "mlp.dense_h_to_4h"),
    *linear(OURS + "ffn.down", THEIRS + "mlp.dense_4h_to_h"),
    *linear("stacks.main.norm", "transformer.ln_f"),
    same("heads.tokens.out.weight", "lm_head.weight"),
    *HEADS,
]
DEFAULTS: Config = {
    "vocab_size": 65024,
    "hidden_size": 4544,
    "num_hidden_layers": 32,
    # Falcon 7B's: 71 heads of 64 are its width of 4,544.
    "num_attention_heads": 71,
    "num_ln_in_parallel_attn": None,
    "layer_norm_epsilon": 1e-5,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "alibi": False,
    "new_decoder_architecture": False,
    "multi_query": True,
    "parallel_attn": True,
    "bias": False,
    "max_position_embeddings": 2048,
    "activation": "gelu",
    "pad_token_id": None,
    "tie_word_embeddings": True,
}


def _block(c: Config) -> str:
    # Only the new architecture can have two norms, and has them where config.json does not say (FalconDecoderLayer).
    if c["new_decoder_architecture"]:
        expect(c, "parallel_attn", True)
        return "parallel" if expect(c, "num_ln_in_parallel_attn", None, 1, 2) == 1 else "parallel_norms_2"
    expect(c, "num_ln_in_parallel_attn", None, 1)
    return "parallel" if c["parallel_attn"] else "pre"


def read(c: Config) -> list[str]:
    expect(c, "apply_residual_connection_post_layernorm", False, default=False)
    # FalconConfig takes n_embed for hidden_size, where a file has both too (__post_init__).
    dim, heads = c.get("n_embed") or c["hidden_size"], c["num_attention_heads"]
    # The reference reads num_kv_heads in the new architecture only; in the old one multi_query decides.
    kv = c.get("num_kv_heads") or heads if c["new_decoder_architecture"] else 1 if c["multi_query"] else heads
    values = {
        "dim": dim,
        "n_layers": c["num_hidden_layers"],
        "n_heads": heads,
        "ffn_dim": c.get("ffn_hidden_size") or 4 * dim,
        "max_positions": c["max_position_embeddings"],
        "vocab_size": c["vocab_size"],
        "norm_eps": c["layer_norm_epsilon"],
        "tie_embeddings": c["tie_word_embeddings"],
        "dropout": c["hidden_dropout"],
        "attention.dropout": c["attention_dropout"],
        "attention.qkv_bias": c["bias"],
        "attention.out_bias": c["bias"],
        "ffn.bias": c["bias"],
        "n_kv_heads": kv,
    }
    # ALiBi is added before the scores are scaled here, from slopes in bfloat16 (build_alibi_tensor of modeling_falcon).
    position = ["position=alibi_falcon"] if c["alibi"] else settings("position", rope(c))
    return [
        "model=falcon",
        f"ffn={activation(c, 'activation', ACTIVATIONS, 'gelu')}",
        f"block={_block(c)}",
        f"attention={'mha' if kv == heads else 'mqa' if kv == 1 else 'gqa'}",
        *settings("model", values),
        *position,
    ]


def write(spec: ModelSpec) -> Config:
    s, parts = spec.sizes, spec.stacks[0].layers[0].parts
    kv, block, position = n_kv_heads(spec), parts["block"], parts["position"]
    norms = block.options.get("norms", 1)
    # Groups of heads and two norms exist in the new architecture alone; one key head,
    # or one for each, in the old one too.
    new = norms == 2 or 1 < kv < s.n_heads
    out = {
        "model_type": "falcon",
        "hidden_size": s.dim,
        "num_hidden_layers": s.n_layers,
        "num_attention_heads": s.n_heads,
        "num_kv_heads": kv,
        "ffn_hidden_size": s.ffn_dim,
        "max_position_embeddings": s.max_positions,
        "vocab_size": s.vocab_size,
        "layer_norm_epsilon": s.norm_eps,
        "tie_word_embeddings": s.tie_embeddings,
        "hidden_dropout": s.dropout,
        "attention_dropout": s.attention.dropout,
        "bias": s.attention.qkv_bias,
        "activation": act_name(parts["ffn"].name, "gelu"),
        "new_decoder_architecture": new,
        "num_ln_in_parallel_attn": norms if new else None,
        "multi_query": kv == 1,
        "parallel_attn": new or block.name == "parallel",
        "alibi": position.name == "alibi",
        # Null, since FalconConfig would fill in 11 for both.
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if position.name != "alibi":
        out["rope_parameters"] = rope_parameters(position.options, s.max_positions)
    return out


ENTRIES = [
    Entry(
        model_types=("falcon",),
        families=("falcon",),
        read=read,
        write=write,
        defaults=DEFAULTS,
        rules=RULES,
        architectures=classes("Falcon"),
        prefix="transformer.",
        # The second name is of the authors' own code, in which the attention chose
        # between rotary and nothing (`maybe_rotary`).
        ignore=(r"\.rotary_emb\.inv_freq$", r"\.self_attention\.(rotary|maybe_rotary)\.inv_freq$"),
        head_key="lm_head.weight",
        embed_key="transformer.word_embeddings.weight",
    )
]
