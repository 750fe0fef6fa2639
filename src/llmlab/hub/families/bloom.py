"""BLOOM: ALiBi, q, k and v fused a head at a time, a norm on the embedding."""

from __future__ import annotations

from llmlab.config.spec import ModelSpec
from llmlab.hub.entry import Config, Entry, settings
from llmlab.hub.families.decoder import HEADS, classes
from llmlab.hub.rules import grouped, linear, same

OURS, THEIRS = "stacks.main.layers.{i}.", "transformer.h.{i}."

RULES = [
    same("stacks.main.embedding.table.weight", "transformer.word_embeddings.weight"),
    # It steadied the training of a first 104B model (Le Scao et al. 2022, arXiv:2211.05100, section 3.2).
    *linear("stacks.main.embedding.norm", "transformer.word_embeddings_layernorm"),
    *linear(OURS + "block.attention_norm", THEIRS + "input_layernorm"),
    *linear(OURS + "block.ffn_norm", THEIRS + "post_attention_layernorm"),
    # Rows of query_key_value go head by head, (heads, 3, head_dim), not all queries first.
    *grouped([OURS + f"attention.{n}" for n in "qkv"], THEIRS + "self_attention.query_key_value"),
    *linear(OURS + "attention.out", THEIRS + "self_attention.dense"),
    *linear(OURS + "ffn.up", THEIRS + "mlp.dense_h_to_4h"),
    *linear(OURS + "ffn.down", THEIRS + "mlp.dense_4h_to_h"),
    *linear("stacks.main.norm", "transformer.ln_f"),
    same("heads.tokens.out.weight", "lm_head.weight"),
    *HEADS,
]
DEFAULTS: Config = {
    "vocab_size": 250880,
    # BloomConfig's defaults are of a toy, so that a bare config is one; published files state their sizes.
    "hidden_size": 64,
    "n_layer": 2,
    "n_head": 8,
    "layer_norm_epsilon": 1e-5,
    "apply_residual_connection_post_layernorm": False,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "pad_token_id": None,
    "tie_word_embeddings": True,
}


def read(c: Config) -> list[str]:
    """Older configs say n_embed, num_attention_heads and num_hidden_layers. How far positions go is not said."""
    dim = c.get("n_embed") or c["hidden_size"]
    values = {
        "dim": dim,
        # The class maps these two names to n_layer and n_head (attribute_map), so that a file may have either.
        "n_layers": c.get("num_hidden_layers") or c["n_layer"],
        "n_heads": c.get("num_attention_heads") or c["n_head"],
        # config.json has no key for it: the reference's linear is 4 hidden_size wide.
        "ffn_dim": 4 * dim,
        "vocab_size": c["vocab_size"],
        "norm_eps": c["layer_norm_epsilon"],
        "tie_embeddings": c["tie_word_embeddings"],
        "dropout": c["hidden_dropout"],
        "attention.dropout": c["attention_dropout"],
    }
    # Not where the norm stands but what is added: with it the residual is the normed x (BloomBlock.forward).
    normed = c["apply_residual_connection_post_layernorm"]
    return ["model=bloom", *settings("model", values), *settings("block", {"normed_residual": normed})]


def write(spec: ModelSpec) -> Config:
    s = spec.sizes
    return {
        "model_type": "bloom",
        "hidden_size": s.dim,
        "n_layer": s.n_layers,
        "n_head": s.n_heads,
        "vocab_size": s.vocab_size,
        "layer_norm_epsilon": s.norm_eps,
        "tie_word_embeddings": s.tie_embeddings,
        "hidden_dropout": s.dropout,
        "attention_dropout": s.attention.dropout,
        "apply_residual_connection_post_layernorm": spec.stacks[0]
        .layers[0]
        .parts["block"]
        .options.get("normed_residual", False),
        # Null, since BloomConfig would fill in 1 and 2.
        "bos_token_id": None,
        "eos_token_id": None,
    }


ENTRIES = [
    Entry(
        model_types=("bloom",),
        families=("bloom",),
        read=read,
        write=write,
        defaults=DEFAULTS,
        rules=RULES,
        architectures=classes("Bloom"),
        prefix="transformer.",
        head_key="lm_head.weight",
        embed_key="transformer.word_embeddings.weight",
    )
]
