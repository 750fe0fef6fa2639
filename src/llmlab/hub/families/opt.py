"""OPT; its 350M has norms behind the sublayers and a narrow token table, Galactica no biases and norms without weights."""

from __future__ import annotations

from llmlab.config.spec import ModelSpec
from llmlab.errors import UserError
from llmlab.hub.entry import Config, Entry, Head, activation, expect, settings
from llmlab.hub.families.decoder import HEADS, TOKENS, classes
from llmlab.hub.families.gpt2 import ACTIVATIONS, act_name
from llmlab.hub.rules import linear, same

OURS, THEIRS = "stacks.main.layers.{i}.", "model.decoder.layers.{i}."

RULES = [
    same("stacks.main.embedding.table.weight", "model.decoder.embed_tokens.weight"),
    # Both projections are without a bias (OPTDecoder), and only in the 350M, whose
    # table is 512 wide and its layers 1,024.
    same("stacks.main.embedding.project.weight", "model.decoder.project_in.weight"),
    # Two rows more than max_position_embeddings: OPTLearnedPositionalEmbedding adds 2 to rows and ids.
    same("stacks.main.positions.0.table.weight", "model.decoder.embed_positions.weight"),
    *linear(OURS + "block.attention_norm", THEIRS + "self_attn_layer_norm"),
    # A layer's "final" norm is the one of its feed-forward; the stack's is named alike, one level above.
    *linear(OURS + "block.ffn_norm", THEIRS + "final_layer_norm"),
    *(r for n in "qkv" for r in linear(OURS + f"attention.{n}", THEIRS + f"self_attn.{n}_proj")),
    *linear(OURS + "attention.out", THEIRS + "self_attn.out_proj"),
    *linear(OURS + "ffn.up", THEIRS + "fc1"),
    *linear(OURS + "ffn.down", THEIRS + "fc2"),
    *linear("stacks.main.norm", "model.decoder.final_layer_norm"),
    same("heads.tokens.down.weight", "model.decoder.project_out.weight"),
    same("heads.tokens.out.weight", "lm_head.weight"),
    *HEADS,
]
DEFAULTS: Config = {
    "vocab_size": 50272,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "ffn_dim": 3072,
    "max_position_embeddings": 2048,
    "do_layer_norm_before": True,
    "_remove_final_layer_norm": False,
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "num_attention_heads": 12,
    "activation_function": "relu",
    "pad_token_id": 1,
    "enable_bias": True,
    "layer_norm_elementwise_affine": True,
    "tie_word_embeddings": True,
}


def read(c: Config) -> list[str]:
    before, bias, width = c["do_layer_norm_before"], c["enable_bias"], _width(c)
    # True in checkpoints that were fine-tuned before transformers 4.20.1 only (modeling_opt).
    if before:
        expect(c, "_remove_final_layer_norm", False)
    # An untied head would be narrow too, which a head of ours is not: it reads the full width.
    if width != c["hidden_size"]:
        expect(c, "tie_word_embeddings", True)
    values = {
        "dim": c["hidden_size"],
        "n_layers": c["num_hidden_layers"],
        "n_heads": c["num_attention_heads"],
        "ffn_dim": c["ffn_dim"],
        "max_positions": c["max_position_embeddings"],
        "vocab_size": c["vocab_size"],
        "tie_embeddings": c["tie_word_embeddings"],
        "dropout": c["dropout"],
        "attention.dropout": c["attention_dropout"],
        "attention.qkv_bias": bias,
        "attention.out_bias": bias,
        "ffn.bias": bias,
    }
    return [
        "model=opt",
        f"ffn={activation(c, 'activation_function', ACTIVATIONS, 'relu')}",
        f"block={'pre' if before else 'post'}",
        # nn.LayerNorm's own 1e-5 in either case: OPT's config.json has no epsilon.
        f"norm={'layernorm' if c['layer_norm_elementwise_affine'] else 'layernorm_plain'}",
        *settings("model", values),
        *([f"embedding.table_width={width}"] if width != c["hidden_size"] else []),
    ]


def _width(c: Config) -> int:
    return c.get("word_embed_proj_dim") or c["hidden_size"]


def write(spec: ModelSpec) -> Config:
    s, parts = spec.sizes, spec.stacks[0].layers[0].parts
    return {
        "model_type": "opt",
        "hidden_size": s.dim,
        "word_embed_proj_dim": spec.stacks[0].embedding.options.get("table_width") or s.dim,
        "num_hidden_layers": s.n_layers,
        "num_attention_heads": s.n_heads,
        "ffn_dim": s.ffn_dim,
        "max_position_embeddings": s.max_positions,
        "vocab_size": s.vocab_size,
        "activation_function": act_name(parts["ffn"].name, "relu"),
        "do_layer_norm_before": parts["block"].name != "post",
        "layer_norm_elementwise_affine": parts["norm"].options.get("weight", True),
        "enable_bias": s.ffn.bias,
        "tie_word_embeddings": s.tie_embeddings,
        "dropout": s.dropout,
        "attention_dropout": s.attention.dropout,
        "bos_token_id": None,
        "eos_token_id": None,
        # Null, since the class would fill in 2, 2 and 1; positions tell padding by the mask, so that no id is needed.
        "pad_token_id": None,
    }


def _plain(name: str, head: Head) -> Head:
    """Only the next token's head goes down to the width of a narrow token table."""

    def heads(c: Config) -> dict:
        if _width(c) != c["hidden_size"]:
            raise UserError(
                f"config.json: word_embed_proj_dim={_width(c)} is not implemented for {name}; known: OPTForCausalLM"
            )
        return head.heads(c)

    return Head(heads, head.outputs, prefix=head.prefix)


CLASSES = classes("OPT", lacks=(TOKENS,))
ENTRIES = [
    Entry(
        model_types=("opt",),
        families=("opt",),
        read=read,
        write=write,
        defaults=DEFAULTS,
        rules=RULES,
        architectures={n: h if n == "OPTForCausalLM" else _plain(n, h) for n, h in CLASSES.items()},
        prefix="model.",
        head_key="lm_head.weight",
        embed_key="model.decoder.embed_tokens.weight",
    )
]
