"""MPT: ALiBi, q, k and v fused, no biases."""

from __future__ import annotations

import warnings
from typing import Any

from llmlab.config.spec import ModelSpec
from llmlab.hub.entry import Config, Entry, expect, settings
from llmlab.hub.families.decoder import HEADS, classes
from llmlab.hub.rules import fused, linear, same

OURS, THEIRS = "stacks.main.layers.{i}.", "transformer.blocks.{i}."

RULES = [
    same("stacks.main.embedding.table.weight", "transformer.wte.weight"),
    # No bias: MptBlock sets that of its nn.LayerNorm to None, since the published weights have none.
    *linear(OURS + "block.attention_norm", THEIRS + "norm_1"),
    *linear(OURS + "block.ffn_norm", THEIRS + "norm_2"),
    # All queries, then all keys, then all values: MptAttention cuts the product with chunk(3, dim=2).
    *fused([OURS + f"attention.{n}" for n in "qkv"], THEIRS + "attn.Wqkv"),
    *linear(OURS + "attention.out", THEIRS + "attn.out_proj"),
    *linear(OURS + "ffn.up", THEIRS + "ffn.up_proj"),
    *linear(OURS + "ffn.down", THEIRS + "ffn.down_proj"),
    *linear("stacks.main.norm", "transformer.norm_f"),
    same("heads.tokens.out.weight", "lm_head.weight"),
    *HEADS,
]
DEFAULTS: Config = {
    "d_model": 2048,
    "n_heads": 16,
    "n_layers": 24,
    "max_seq_len": 2048,
    "vocab_size": 50368,
    "layer_norm_epsilon": 1e-5,
    "no_bias": True,
    "pad_token_id": None,
    "tie_word_embeddings": True,
}
# The first is MosaicML's norm that autocast computes in low precision; transformers has a plain one for either name.
NORMS = ("low_precision_layernorm", "layernorm")


def _attention(c: Config) -> dict[str, Any]:
    """attn_config, with what the reference does not read checked: its tensors would be left over, or it computes as 8 does."""
    a = c.get("attn_config") or {}
    expect(a, "attn_type", "multihead_attention", default="multihead_attention")
    expect(a, "prefix_lm", False, default=False)
    expect(a, "qk_ln", False, default=False)
    expect(a, "alibi", True, default=True)
    # build_mpt_alibi_tensor is called without it, so that its default of 8 holds.
    if a.get("alibi_bias_max", 8) != 8:
        warnings.warn(
            f"config.json: alibi_bias_max={a['alibi_bias_max']} is read as 8, as by transformers", stacklevel=2
        )
    return a


def read(c: Config) -> list[str]:
    a = _attention(c)
    # transformers reads none of these four (modeling_mpt.py): it would compute as with the values that stand here.
    expect(c, "no_bias", True)
    expect(c, "expansion_ratio", 4, default=4)
    expect(c, "logit_scale", None)
    expect(c, "norm_type", *NORMS, default=NORMS[0])
    values = {
        "dim": c["d_model"],
        "n_layers": c["n_layers"],
        "n_heads": c["n_heads"],
        "ffn_dim": 4 * c["d_model"],
        "max_positions": c["max_seq_len"],
        "vocab_size": c["vocab_size"],
        "norm_eps": c["layer_norm_epsilon"],
        "tie_embeddings": c["tie_word_embeddings"],
        # attn_pdrop is the dropout on the residual too (MptBlock, MptMLP).
        "dropout": a.get("attn_pdrop") or 0.0,
        "attention.dropout": a.get("attn_pdrop") or 0.0,
        # 0 is "not clipped" too: MptAttention asks `if self.clip_qkv`.
        "attention.clip_qkv": a.get("clip_qkv") or None,
        "attention.scale": a.get("softmax_scale"),
    }
    return ["model=mpt", *settings("model", values)]


def write(spec: ModelSpec) -> Config:
    s = spec.sizes
    return {
        "model_type": "mpt",
        "d_model": s.dim,
        "n_layers": s.n_layers,
        "n_heads": s.n_heads,
        "max_seq_len": s.max_positions,
        "vocab_size": s.vocab_size,
        "layer_norm_epsilon": s.norm_eps,
        "tie_word_embeddings": s.tie_embeddings,
        "no_bias": True,
        "attn_config": {"clip_qkv": s.attention.clip_qkv, "softmax_scale": s.attention.scale, "alibi": True},
    }


ENTRIES = [
    Entry(
        model_types=("mpt",),
        families=("mpt",),
        read=read,
        write=write,
        defaults=DEFAULTS,
        rules=RULES,
        architectures=classes("Mpt"),
        prefix="transformer.",
        head_key="lm_head.weight",
        embed_key="transformer.wte.weight",
    )
]
