"""Phi-1, 1.5 and 2: parallel sublayers behind one norm, biases everywhere, on the logits too."""

from __future__ import annotations

from llmlab.config.spec import ModelSpec
from llmlab.hub.entry import Config, Entry, activation, n_kv_heads, rope, rope_parameters, settings
from llmlab.hub.families.decoder import GENERIC_HEADS, SPANS, classes
from llmlab.hub.families.gpt2 import ACTIVATIONS, act_name
from llmlab.hub.rules import linear, same

OURS, THEIRS = "stacks.main.layers.{i}.", "model.layers.{i}."

RULES = [
    same("stacks.main.embedding.table.weight", "model.embed_tokens.weight"),
    # The one norm of a layer: attention and feed-forward read the same normed x (PhiDecoderLayer).
    *linear(OURS + "block.norm", THEIRS + "input_layernorm"),
    *(r for n in "qkv" for r in linear(OURS + f"attention.{n}", THEIRS + f"self_attn.{n}_proj")),
    # LayerNorms with a bias over one head's width, one for all heads (PhiAttention), unlike StableLM's.
    *(r for n in "qk" for r in linear(OURS + f"attention.{n}_norm", THEIRS + f"self_attn.{n}_layernorm")),
    *linear(OURS + "attention.out", THEIRS + "self_attn.dense"),
    *linear(OURS + "ffn.up", THEIRS + "mlp.fc1"),
    *linear(OURS + "ffn.down", THEIRS + "mlp.fc2"),
    *linear("stacks.main.norm", "model.final_layernorm"),
    same("heads.tokens.out.weight", "lm_head.weight"),
    # PhiForCausalLM builds lm_head with bias=True; the heads of LLaMA's kin have none.
    same("heads.tokens.bias", "lm_head.bias"),
    *GENERIC_HEADS,
]
DEFAULTS: Config = {
    "vocab_size": 51200,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attention_dropout": 0.0,
    "hidden_act": "gelu_new",
    "max_position_embeddings": 2048,
    "layer_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "qk_layernorm": False,
    "pad_token_id": None,
}


def read(c: Config) -> list[str]:
    heads = c["num_attention_heads"]
    # PhiConfig's default is None: as many as heads, which all published sizes have.
    kv = c.get("num_key_value_heads") or heads
    # PhiConfig has no such key; PhiAttention reads it all the same where a file has it (getattr).
    width = c.get("head_dim") or c["hidden_size"] // heads
    values = {
        "dim": c["hidden_size"],
        "n_layers": c["num_hidden_layers"],
        "n_heads": heads,
        "n_kv_heads": kv,
        "head_dim": width,
        "ffn_dim": c["intermediate_size"],
        "max_positions": c["max_position_embeddings"],
        "vocab_size": c["vocab_size"],
        "norm_eps": c["layer_norm_eps"],
        "tie_embeddings": c["tie_word_embeddings"],
        "dropout": c["resid_pdrop"],
        "attention.dropout": c["attention_dropout"],
        "attention.qk_norm": "head" if c["qk_layernorm"] else None,
    }
    return [
        "model=phi",
        f"ffn={activation(c, 'hidden_act', ACTIVATIONS, 'gelu_new')}",
        f"attention={'mha' if kv == heads else 'gqa'}",
        *settings("model", values),
        # PhiConfig sets 0.5 where a file lacks it (32 of 64 dims in Phi-1.5); Phi-2 says 0.4, which is 32 of 80.
        *settings("position", rope(c, partial=0.5, even=width)),
    ]


def write(spec: ModelSpec) -> Config:
    s, parts = spec.sizes, spec.stacks[0].layers[0].parts
    return {
        "model_type": "phi",
        "hidden_size": s.dim,
        "num_hidden_layers": s.n_layers,
        "num_attention_heads": s.n_heads,
        "num_key_value_heads": n_kv_heads(spec),
        "head_dim": s.head_dim,
        "intermediate_size": s.ffn_dim,
        "max_position_embeddings": s.max_positions,
        "vocab_size": s.vocab_size,
        "layer_norm_eps": s.norm_eps,
        "tie_word_embeddings": s.tie_embeddings,
        "resid_pdrop": s.dropout,
        # One dropout here is three in the file: on the embedding and behind either sublayer.
        "embd_pdrop": s.dropout,
        "attention_dropout": s.attention.dropout,
        "hidden_act": act_name(parts["ffn"].name),
        "qk_layernorm": s.attention.qk_norm == "head",
        "rope_parameters": rope_parameters(parts["position"].options, s.max_positions, partial=True),
    }


ENTRIES = [
    Entry(
        model_types=("phi",),
        families=("phi",),
        read=read,
        write=write,
        defaults=DEFAULTS,
        rules=RULES,
        architectures=classes("Phi", bias=True, lacks=(SPANS,)),
        prefix="model.",
        ignore=(r"rotary_emb\.inv_freq$",),
        head_key="lm_head.weight",
        embed_key="model.embed_tokens.weight",
    )
]
