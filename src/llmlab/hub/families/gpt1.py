"""GPT-1: GPT-2's tensors under other names, norms behind the sublayers."""

from __future__ import annotations

from llmlab.config.spec import ModelSpec
from llmlab.hub.entry import Config, Entry, activation, settings
from llmlab.hub.families.decoder import HEADS, SPANS, TOKENS, classes
from llmlab.hub.rules import fused, linear, same

OURS, THEIRS = "stacks.main.layers.{i}.", "transformer.h.{i}."
# "gelu" is the approximation by tanh here (ACT_FNS of modeling_openai), unlike in every later family.
ACTIVATIONS = {"gelu": "gelu_tanh", "gelu_new": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}

RULES = [
    same("stacks.main.embedding.table.weight", "transformer.tokens_embed.weight"),
    same("stacks.main.positions.0.table.weight", "transformer.positions_embed.weight"),
    # ln_1 norms x + attention(x), not its input (Block.forward of modeling_openai), and no norm follows the last layer.
    *linear(OURS + "block.attention_norm", THEIRS + "ln_1"),
    *linear(OURS + "block.ffn_norm", THEIRS + "ln_2"),
    # Conv1D holds its weight as (in, out).
    *fused([OURS + f"attention.{n}" for n in "qkv"], THEIRS + "attn.c_attn", transpose=True),
    *linear(OURS + "attention.out", THEIRS + "attn.c_proj", transpose=True),
    *linear(OURS + "ffn.up", THEIRS + "mlp.c_fc", transpose=True),
    *linear(OURS + "ffn.down", THEIRS + "mlp.c_proj", transpose=True),
    same("heads.tokens.out.weight", "lm_head.weight"),
    *HEADS,
]
DEFAULTS: Config = {
    "vocab_size": 40478,
    "n_positions": 512,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    # The key of this family alone; GPT-2's activation_function is not read here.
    "afn": "gelu",
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5,
    "pad_token_id": None,
    "tie_word_embeddings": True,
}


def read(c: Config) -> list[str]:
    values = {
        "dim": c["n_embd"],
        "n_layers": c["n_layer"],
        "n_heads": c["n_head"],
        # config.json has no key for it.
        "ffn_dim": 4 * c["n_embd"],
        "max_positions": c["n_positions"],
        "vocab_size": c["vocab_size"],
        "norm_eps": c["layer_norm_epsilon"],
        "tie_embeddings": c["tie_word_embeddings"],
        # embd_pdrop is not asked for: one dropout stands for both, which are 0.1 in the
        # paper (Radford et al. 2018, section 4.1).
        "dropout": c["resid_pdrop"],
        "attention.dropout": c["attn_pdrop"],
    }
    return ["model=gpt1", f"ffn={activation(c, 'afn', ACTIVATIONS, 'gelu')}", *settings("model", values)]


def write(spec: ModelSpec) -> Config:
    s = spec.sizes
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    return {
        "model_type": "openai-gpt",
        "n_embd": s.dim,
        "n_layer": s.n_layers,
        "n_head": s.n_heads,
        "n_positions": s.max_positions,
        "vocab_size": s.vocab_size,
        "layer_norm_epsilon": s.norm_eps,
        "afn": names.get(spec.stacks[0].layers[0].parts["ffn"].name, "gelu"),
        "tie_word_embeddings": s.tie_embeddings,
        "resid_pdrop": s.dropout,
        "embd_pdrop": s.dropout,
        "attn_pdrop": s.attention.dropout,
    }


ENTRIES = [
    Entry(
        model_types=("openai-gpt",),
        families=("gpt1",),
        read=read,
        write=write,
        defaults=DEFAULTS,
        rules=RULES,
        architectures=classes("OpenAIGPT", causal="OpenAIGPTLMHeadModel", lacks=(TOKENS, SPANS)),
        prefix="transformer.",
        # The triangle of ones and the row numbers: buffers that older versions of transformers saved with the weights.
        ignore=(r"\.attn\.bias$", r"position_ids$"),
        head_key="lm_head.weight",
        embed_key="transformer.tokens_embed.weight",
    )
]
