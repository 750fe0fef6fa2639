"""GPT-2: fused projections stored as (in, out)."""

from __future__ import annotations

from llmlab.config.spec import ModelSpec
from llmlab.hub.entry import Config, Entry, activation, expect, settings
from llmlab.hub.families.decoder import HEADS, classes
from llmlab.hub.rules import fused, linear, same

OURS, THEIRS = "stacks.main.layers.{i}.", "transformer.h.{i}."
ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    # gelu_new, gelu_pytorch_tanh and gelu_fast are one formula, 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "relu2": "relu2",
}

RULES = [
    same("stacks.main.embedding.table.weight", "transformer.wte.weight"),
    same("stacks.main.positions.0.table.weight", "transformer.wpe.weight"),
    *linear(OURS + "block.attention_norm", THEIRS + "ln_1"),
    *linear(OURS + "block.ffn_norm", THEIRS + "ln_2"),
    # GPT-2's Conv1D holds its weight as (in, out), the transpose of a linear's.
    *fused([OURS + f"attention.{n}" for n in "qkv"], THEIRS + "attn.c_attn", transpose=True),
    *linear(OURS + "attention.out", THEIRS + "attn.c_proj", transpose=True),
    *linear(OURS + "ffn.up", THEIRS + "mlp.c_fc", transpose=True),
    *linear(OURS + "ffn.down", THEIRS + "mlp.c_proj", transpose=True),
    *linear("stacks.main.norm", "transformer.ln_f"),
    same("heads.tokens.out.weight", "lm_head.weight"),
    *HEADS,
]


DEFAULTS: Config = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    # None means 4 n_embd (GPT2Block), which all published sizes have.
    "n_inner": None,
    "activation_function": "gelu_new",
    "resid_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "pad_token_id": None,
}


def act_name(ffn: str, default: str = "gelu_new") -> str:
    """The reference's first name for the activation of an ffn part."""
    return {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}.get(ffn, default)


def read(c: Config) -> list[str]:
    # With it each layer has a third sublayer (`crossattention`, `ln_cross_attn`), whose
    # keys and values are fused and queries not.
    expect(c, "add_cross_attention", False)
    ffn = activation(c, "activation_function", ACTIVATIONS, "gelu_new")
    return [
        "model=gpt2",
        f"ffn={ffn}",
        *settings(
            "model",
            {
                "dim": c["n_embd"],
                "n_layers": c["n_layer"],
                "n_heads": c["n_head"],
                "ffn_dim": c["n_inner"] or 4 * c["n_embd"],
                "max_positions": c["n_positions"],
                "vocab_size": c["vocab_size"],
                "norm_eps": c["layer_norm_epsilon"],
                "tie_embeddings": c["tie_word_embeddings"],
                "dropout": c["resid_pdrop"],
                "attention.dropout": c["attn_pdrop"],
                # The GPT-2s of Stanford's Mistral project divide the scores by the layer's number too:
                # (layer_idx + 1), GPT2Attention.scaling.
                "attention.scale_over_layer": c["scale_attn_by_inverse_layer_idx"],
                **({} if c["scale_attn_weights"] else {"attention.scale": 1.0}),
            },
        ),
    ]


def write(spec: ModelSpec) -> Config:
    s = spec.sizes
    return {
        "model_type": "gpt2",
        "n_embd": s.dim,
        "n_layer": s.n_layers,
        "n_head": s.n_heads,
        "n_inner": s.ffn_dim,
        "n_positions": s.max_positions,
        "vocab_size": s.vocab_size,
        "layer_norm_epsilon": s.norm_eps,
        "activation_function": act_name(spec.stacks[0].layers[0].parts["ffn"].name),
        "tie_word_embeddings": s.tie_embeddings,
        "resid_pdrop": s.dropout,
        "embd_pdrop": s.dropout,
        "attn_pdrop": s.attention.dropout,
        "scale_attn_weights": s.attention.scale is None,
        "scale_attn_by_inverse_layer_idx": s.attention.scale_over_layer,
        # Null, since GPT2Config fills in 50,256 for both, whatever token that is here.
        "bos_token_id": None,
        "eos_token_id": None,
    }


ENTRIES = [
    Entry(
        model_types=("gpt2",),
        families=("gpt2",),
        read=read,
        write=write,
        defaults=DEFAULTS,
        rules=RULES,
        architectures=classes("GPT2", causal="GPT2LMHeadModel"),
        prefix="transformer.",
        # The causal mask and its fill value, buffers that older versions of transformers saved with the weights.
        ignore=(r"\.attn\.(bias|masked_bias)$",),
        head_key="lm_head.weight",
        embed_key="transformer.wte.weight",
    )
]
