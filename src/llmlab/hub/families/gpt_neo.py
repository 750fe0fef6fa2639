"""GPT-Neo: global and local layers, q.k not scaled."""

from __future__ import annotations

from llmlab.config.spec import ModelSpec
from llmlab.errors import UserError
from llmlab.hub.entry import Config, Entry, activation, expect, settings
from llmlab.hub.families.decoder import HEADS, classes
from llmlab.hub.families.gpt2 import ACTIVATIONS, act_name
from llmlab.hub.rules import linear, same

OURS, THEIRS = "stacks.main.layers.{i}.", "transformer.h.{i}."

RULES = [
    same("stacks.main.embedding.table.weight", "transformer.wte.weight"),
    same("stacks.main.positions.0.table.weight", "transformer.wpe.weight"),
    *linear(OURS + "block.attention_norm", THEIRS + "ln_1"),
    *linear(OURS + "block.ffn_norm", THEIRS + "ln_2"),
    *(r for n in "qkv" for r in linear(OURS + f"attention.{n}", THEIRS + f"attn.attention.{n}_proj")),
    # It has a bias, and q, k and v have none (GPTNeoSelfAttention); attn.attention
    # since a GPTNeoAttention only holds it.
    *linear(OURS + "attention.out", THEIRS + "attn.attention.out_proj"),
    *linear(OURS + "ffn.up", THEIRS + "mlp.c_fc"),
    *linear(OURS + "ffn.down", THEIRS + "mlp.c_proj"),
    *linear("stacks.main.norm", "transformer.ln_f"),
    same("heads.tokens.out.weight", "lm_head.weight"),
    *HEADS,
]
DEFAULTS: Config = {
    "vocab_size": 50257,
    "max_position_embeddings": 2048,
    "hidden_size": 2048,
    "num_layers": 24,
    # GPTNeoConfig's default: pairs of names and how often they repeat, here 24 layers that alternate.
    "attention_types": [[["global", "local"], 12]],
    "num_heads": 16,
    "intermediate_size": None,
    # The window counts tokens, the query among them: the mask is xor(tril(ones), tril(ones, -window_size)).
    "window_size": 256,
    "activation_function": "gelu_new",
    "resid_dropout": 0.0,
    "embed_dropout": 0.0,
    "attention_dropout": 0.0,
    "layer_norm_epsilon": 1e-5,
    "pad_token_id": None,
    "tie_word_embeddings": True,
}


def _kinds(c: Config) -> list[str]:
    kinds = [kind for names, times in c["attention_types"] for _ in range(times) for kind in names]
    for kind in kinds:
        expect({"attention_types": kind}, "attention_types", "global", "local")
    if len(kinds) != c["num_layers"]:
        raise UserError(f"config.json: attention_types names {len(kinds)} layers, but num_layers={c['num_layers']}")
    return kinds


def read(c: Config) -> list[str]:
    values = {
        "dim": c["hidden_size"],
        "n_layers": c["num_layers"],
        "n_heads": c["num_heads"],
        "ffn_dim": c["intermediate_size"] or 4 * c["hidden_size"],
        "max_positions": c["max_position_embeddings"],
        "vocab_size": c["vocab_size"],
        "norm_eps": c["layer_norm_epsilon"],
        "tie_embeddings": c["tie_word_embeddings"],
        "dropout": c["resid_dropout"],
        "attention.dropout": c["attention_dropout"],
    }
    return [
        "model=gpt_neo",
        f"ffn={activation(c, 'activation_function', ACTIVATIONS, 'gelu_new')}",
        *settings("model", values),
        f"kinds.local.window.left={c['window_size']}",
        f"layers.first=[{','.join(_kinds(c))}]",
        "layers.cycle=[]",
    ]


def write(spec: ModelSpec) -> Config:
    s, layers = spec.sizes, spec.stacks[0].layers
    kinds = ["local" if layer.parts["window"].name == "sliding" else "global" for layer in layers]
    local = next((layer.parts["window"] for layer in layers if layer.parts["window"].name == "sliding"), None)
    return {
        "model_type": "gpt_neo",
        "hidden_size": s.dim,
        "num_layers": s.n_layers,
        "num_heads": s.n_heads,
        "intermediate_size": s.ffn_dim,
        "max_position_embeddings": s.max_positions,
        "vocab_size": s.vocab_size,
        "layer_norm_epsilon": s.norm_eps,
        "activation_function": act_name(layers[0].parts["ffn"].name),
        "tie_word_embeddings": s.tie_embeddings,
        "resid_dropout": s.dropout,
        "embed_dropout": s.dropout,
        "attention_dropout": s.attention.dropout,
        "attention_types": [[[kind], 1] for kind in kinds],
        # The class's default where no layer is local: transformers 5 refuses null for
        # a key that it types int (`@strict`).
        "window_size": local.options["left"] if local else 256,
        # As GPT-2's: the class fills in 50,256.
        "bos_token_id": None,
        "eos_token_id": None,
    }


ENTRIES = [
    Entry(
        model_types=("gpt_neo",),
        families=("gpt_neo",),
        read=read,
        write=write,
        defaults=DEFAULTS,
        rules=RULES,
        architectures=classes("GPTNeo"),
        prefix="transformer.",
        # The causal mask and its fill value, which older versions of transformers saved.
        ignore=(r"\.attn\.attention\.(bias|masked_bias)$",),
        head_key="lm_head.weight",
        embed_key="transformer.wte.weight",
    )
]
