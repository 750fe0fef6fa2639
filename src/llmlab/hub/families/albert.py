"""ALBERT: groups of layers that are run again and again, a factorized embedding."""

from __future__ import annotations

from llmlab.errors import UserError
from llmlab.hub.entry import Config, Entry, Head, activation, expect, part, settings
from llmlab.hub.families.bert import ACTIVATIONS, HEADS, base, masked, sizes
from llmlab.hub.rules import linear, same
from llmlab.model.layout import ModelSpec

OURS, THEIRS = "stacks.main.layers.{i}.", "albert.encoder.albert_layer_groups.{i}.albert_layers.0."

RULES = [
    same("stacks.main.embedding.table.weight", "albert.embeddings.word_embeddings.weight"),
    same("stacks.main.positions.0.table.weight", "albert.embeddings.position_embeddings.weight"),
    same("stacks.main.embedding.segments.weight", "albert.embeddings.token_type_embeddings.weight"),
    *linear("stacks.main.embedding.norm", "albert.embeddings.LayerNorm"),
    *linear("stacks.main.embedding.project", "albert.encoder.embedding_hidden_mapping_in"),
    *linear(OURS + "attention.q", THEIRS + "attention.query"),
    *linear(OURS + "attention.k", THEIRS + "attention.key"),
    *linear(OURS + "attention.v", THEIRS + "attention.value"),
    *linear(OURS + "attention.out", THEIRS + "attention.dense"),
    *linear(OURS + "block.attention_norm", THEIRS + "attention.LayerNorm"),
    *linear(OURS + "ffn.up", THEIRS + "ffn"),
    *linear(OURS + "ffn.down", THEIRS + "ffn_output"),
    *linear(OURS + "block.ffn_norm", THEIRS + "full_layer_layer_norm"),
    *(r for role in ("pooled", "pair", "classes") for r in linear(f"heads.{role}.dense", "albert.pooler")),
    *linear("heads.pair.out", "sop_classifier.classifier"),
    *linear("heads.classes.out", "classifier"),
    *linear("heads.labels.out", "classifier"),
    *linear("heads.span.out", "qa_outputs"),
    *linear("heads.tokens.dense", "predictions.dense"),
    *linear("heads.tokens.norm", "predictions.LayerNorm"),
    same(
        "heads.tokens.bias", "predictions.decoder.bias", needs="heads.tokens.out.weight", copies=("predictions.bias",)
    ),
    same("heads.tokens.bias", "predictions.bias"),
    same("heads.tokens.out.weight", "predictions.decoder.weight"),
]


DEFAULTS: Config = {
    "vocab_size": 30000,
    "embedding_size": 128,
    "hidden_size": 4096,
    "num_hidden_layers": 12,
    "num_hidden_groups": 1,
    "num_attention_heads": 64,
    "intermediate_size": 16384,
    "inner_group_num": 1,
    "hidden_act": "gelu_new",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}


def read(c: Config) -> list[str]:
    expect(c, "inner_group_num", 1)
    expect(c, "position_embedding_type", "absolute", default="absolute")
    n, groups = c["num_hidden_layers"], c["num_hidden_groups"]
    execute = [int(i / (n / groups)) for i in range(n)]
    ffn = activation(c, "hidden_act", ACTIVATIONS, "gelu_new")
    return [
        "model=albert",
        f"ffn={ffn}",
        *sizes(c),
        *settings("embedding", {"width": c["embedding_size"]}),
        f"execute={execute}".replace(" ", ""),
    ]


def write(spec: ModelSpec) -> Config:
    execute = list(spec.stacks[0].execute)
    groups = max(execute) + 1
    if execute != [int(i / (len(execute) / groups)) for i in range(len(execute))]:
        raise UserError(f"execute={execute} has no place in an ALBERT config.json: its groups run one after the other")
    width = spec.stacks[0].embedding.options.get("width") or max(16, spec.sizes.dim // 4)
    return {
        "model_type": "albert",
        **base(spec),
        "num_hidden_layers": len(execute),
        "num_hidden_groups": groups,
        "inner_group_num": 1,
        "embedding_size": width,
    }


ENTRIES = [
    Entry(
        model_types=("albert",),
        families=("albert",),
        read=read,
        write=write,
        defaults=DEFAULTS,
        rules=RULES,
        architectures={
            **{f"Albert{name}": head for name, head in HEADS.items()},
            "AlbertForPreTraining": Head(
                lambda c: {**masked(c), "pair": part("head", "pooled")},
                {"prediction_logits": "head:tokens", "sop_logits": "head:pair"},
            ),
        },
        prefix="albert.",
        ignore=(
            r"embeddings\.position_ids$",
            r"^predictions\.(decoder\.|bias$|dense\.|LayerNorm\.)",
            r"^(albert\.)?pooler\.",
            r"^sop_classifier\.",
        ),
        head_key="predictions.decoder.weight",
        embed_key="albert.embeddings.word_embeddings.weight",
    )
]
