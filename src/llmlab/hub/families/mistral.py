"""Mistral, and Mixtral with its experts."""

from __future__ import annotations

from llmlab.config.spec import ModelSpec
from llmlab.hub.entry import Config, expect, rope, settings
from llmlab.hub.families.llama import ATTENTION, FFN, NORMS, OURS, THEIRS, base, gate, gate_name, layout, sizes, turned
from llmlab.hub.rules import Rule, experts, same
from llmlab.hub.windows import read_windows, write_windows

MISTRAL: Config = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    # Version 0.1's; the files of 0.2 and 0.3 say null.
    "sliding_window": 4096,
    "attention_dropout": 0.0,
    "pad_token_id": None,
}
MIXTRAL: Config = {
    **MISTRAL,
    "rms_norm_eps": 1e-5,
    # MixtralConfig.default_theta; the class of Mistral keeps the 10,000 of its base.
    "rope_theta": 1e6,
    "sliding_window": None,
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
    "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0,
}
# Names of the original release, in which checkpoints are still published; transformers 5 renames them as it loads.
NAMES = {"gate": "w1", "down": "w2", "up": "w3"}
ROUTED = [
    same(OURS + "ffn.router.gate.weight", THEIRS + "block_sparse_moe.gate.weight"),
    *(
        experts(OURS + f"ffn.experts.{n}.weight", THEIRS + f"block_sparse_moe.experts.{{e}}.{w}.weight")
        for n, w in NAMES.items()
    ),
]
STACKED = [  # as transformers 5 holds them
    same(OURS + "ffn.router.gate.weight", THEIRS + "mlp.gate.weight"),
    Rule(
        (OURS + "ffn.experts.gate.weight", OURS + "ffn.experts.up.weight"),
        (THEIRS + "mlp.experts.gate_up_proj",),
        "stacked",
    ),
    same(OURS + "ffn.experts.down.weight", THEIRS + "mlp.experts.down_proj"),
]


def _read(c: Config, family: str) -> list[str]:
    # All layers or none: transformers warns that a Mistral with layer_types is for
    # Ministral's class and does not read them.
    types = ["sliding_attention" if c["sliding_window"] else "full_attention"] * c["num_hidden_layers"]
    values = sizes(c)
    if family == "mixtral":
        # Noise on the hidden states in training, which llmlab does not have.
        expect(c, "router_jitter_noise", 0)
        values |= {
            "moe.n_experts": c["num_local_experts"],
            "moe.per_token": c["num_experts_per_tok"],
            "moe.ffn_dim": c["intermediate_size"],
            # Mixtral divides the weights of its two experts by their sum without asking
            # (MixtralTopKRouter), so there is no key to read.
            "moe.balance": c["router_aux_loss_coef"],
        }
    return [
        f"model={family}",
        gate(c),
        *read_windows(types, c["sliding_window"]),
        *settings("model", values),
        *settings("position", rope(c)),
    ]


def write(spec: ModelSpec) -> Config:
    return {
        "model_type": "mistral",
        **base(spec),
        "hidden_act": gate_name(spec),
        "sliding_window": write_windows(spec)[1],
        "rope_parameters": turned(spec),
    }


def write_mixtral(spec: ModelSpec) -> Config:
    moe = spec.sizes.moe
    return {
        **write(spec),
        "model_type": "mixtral",
        # MixtralExperts are intermediate_size wide; there is no dense layer that would need the key for itself.
        "intermediate_size": moe.ffn_dim,
        "num_local_experts": moe.n_experts,
        "num_experts_per_tok": moe.per_token,
        "router_aux_loss_coef": moe.balance,
    }


ENTRIES = [
    layout(
        "Mistral",
        "mistral",
        ("mistral",),
        [*NORMS, *ATTENTION, *FFN],
        read=lambda c: _read(c, "mistral"),
        write=write,
        defaults=MISTRAL,
    ),
    layout(
        "Mixtral",
        "mixtral",
        ("mixtral",),
        [*NORMS, *ATTENTION, *ROUTED, *STACKED],
        read=lambda c: _read(c, "mixtral"),
        write=write_mixtral,
        defaults=MIXTRAL,
    ),
]
