"""DeepSeek-V2 and V2-Lite: latent attention, softmax routing within groups, first layers dense."""

from __future__ import annotations

from llmlab.config.spec import ModelSpec
from llmlab.hub.entry import Config, check_heads, expect, settings
from llmlab.hub.families import deepseek
from llmlab.hub.families.decoder import SPANS, TOKENS
from llmlab.hub.families.llama import FFN, NORMS, layout, routed

DEFAULTS: Config = {
    "vocab_size": 102400,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    # DeepseekV2Config's, an odd number; published files say 1,408 (Lite) and 1,536.
    "moe_intermediate_size": 1407,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "n_shared_experts": 2,
    "n_routed_experts": 64,
    "routed_scaling_factor": 1.0,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "topk_method": "greedy",
    "n_group": None,
    "topk_group": None,
    "num_experts_per_tok": None,
    "first_k_dense_replace": 0,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "pad_token_id": None,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
}


def read(c: Config) -> list[str]:
    expect(c, "scoring_func", "softmax", default="softmax")
    expect(c, "mlp_bias", False)
    # "greedy" is Lite's and ignores n_group, which its file states as 1 all the same.
    grouped = expect(c, "topk_method", "greedy", "group_limited_greedy") != "greedy"
    groups = {"groups": c["n_group"] if grouped else 1, "groups_kept": c["topk_group"] if grouped else 1}
    return [
        "model=deepseek_v2",
        # Pairs of neighbours without a key for it: apply_rotary_emb of modeling_deepseek_v2 goes by view_as_complex.
        *deepseek.body(c, interleaved=True),
        "model.moe.renormalise=false",  # norm_topk_prob is not read by the reference
        *settings("moe", groups),
    ]


def write(spec: ModelSpec) -> Config:
    check_heads(spec)
    out = {**deepseek.write(spec), "model_type": "deepseek_v2"}
    for key in ("rope_interleave", "norm_topk_prob"):
        del out[key]
    return out | {"topk_method": "greedy" if out["topk_group"] == out["n_group"] else "group_limited_greedy"}


ENTRIES = [
    layout(
        "DeepseekV2",
        "deepseek_v2",
        ("deepseek_v2",),
        [*NORMS, *deepseek.LATENT, *FFN, *routed("shared_experts")],
        read=read,
        write=write,
        defaults=DEFAULTS,
        lacks=(TOKENS, SPANS),
    )
]
