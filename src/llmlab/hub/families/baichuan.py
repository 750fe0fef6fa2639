"""Baichuan 1 and 2, which transformers lacks: LLaMA with q, k and v in one W_pack; the 13B has ALiBi, version 2 a head of
unit rows. As in the authors' code (modeling_baichuan.py in their repositories).
"""

from __future__ import annotations

from llmlab.config.spec import ModelSpec
from llmlab.hub.entry import Config, Entry, Head, expect, part, settings
from llmlab.hub.families.llama import ENDS, FFN, NORMS, OURS, THEIRS
from llmlab.hub.rules import fused, linear

RULES = [
    *ENDS,
    *NORMS,
    # All queries, then all keys, then all values (Attention.forward unflattens the product to (3, hidden_size)).
    *fused([OURS + f"attention.{n}" for n in "qkv"], THEIRS + "self_attn.W_pack"),
    *linear(OURS + "attention.out", THEIRS + "self_attn.o_proj"),
    *FFN,
]
DEFAULTS: Config = {
    "vocab_size": 64000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}


def read(c: Config) -> list[str]:
    """The 13B is told from the 7B by what its config.json lacks: max_position_embeddings, for it has ALiBi."""
    expect(c, "hidden_act", "silu")
    rotated = "max_position_embeddings" in c
    values = {
        "dim": c["hidden_size"],
        "n_layers": c["num_hidden_layers"],
        "n_heads": c["num_attention_heads"],
        "ffn_dim": c["intermediate_size"],
        # ALiBi needs no such number; from model_max_length the 13B makes its first mask (max_cache_pos).
        "max_positions": c["max_position_embeddings"] if rotated else c.get("model_max_length", 4096),
        "vocab_size": c["vocab_size"],
        "norm_eps": c["rms_norm_eps"],
        "tie_embeddings": c["tie_word_embeddings"],
    }
    position = ["position=rope", *settings("position", {"theta": float(c.get("rope_theta", 10000.0))})]
    return ["model=baichuan", *settings("model", values), *(position if rotated else ["position=alibi"])]


def write(spec: ModelSpec) -> Config:
    s, position = spec.sizes, spec.stacks[0].layers[0].parts["position"]
    out = {
        "model_type": "baichuan",
        "hidden_size": s.dim,
        "num_hidden_layers": s.n_layers,
        "num_attention_heads": s.n_heads,
        "intermediate_size": s.ffn_dim,
        "vocab_size": s.vocab_size,
        "rms_norm_eps": s.norm_eps,
        "tie_word_embeddings": s.tie_embeddings,
        "hidden_act": "silu",
        "model_max_length": s.max_positions,
    }
    if position.name != "alibi":
        out |= {"max_position_embeddings": s.max_positions, "rope_theta": position.options.get("theta", 10000.0)}
    # Its mere presence tells a file of version 2.
    if "tokens" in spec.heads and spec.heads["tokens"].options.get("unit_rows"):
        out["z_loss_weight"] = 0.0
    return out


# Version 2, whose config.json alone has z_loss_weight, scales the rows of its head to length 1.
LM = Head(lambda c: {"tokens": part("head", "lm", unit_rows="z_loss_weight" in c)}, {"logits": "head:tokens"})
ENTRIES = [
    Entry(
        model_types=("baichuan",),
        families=("baichuan",),
        read=read,
        write=write,
        defaults=DEFAULTS,
        rules=RULES,
        architectures={
            "BaichuanForCausalLM": LM,
            # Version 1 of the 7B spells its class with a capital C.
            "BaiChuanForCausalLM": LM,
            "BaichuanModel": Head(lambda c: {}, {"last_hidden_state": "hidden"}, prefix=""),
        },
        prefix="model.",
        # The 13B keeps ALiBi's biases with its mask in the buffer future_mask.
        ignore=(r"rotary_emb\.inv_freq$", r"^model\.future_mask$"),
        head_key="lm_head.weight",
        embed_key="model.embed_tokens.weight",
    )
]
