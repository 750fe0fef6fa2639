"""BERT: post-norm encoder, or decoder, with the heads of its classes."""

from __future__ import annotations

from llmlab.hub.entry import Config, Entry, Head, activation, expect, n_labels, part, settings
from llmlab.hub.rules import linear, same
from llmlab.model.layout import ModelSpec

OURS, THEIRS = "stacks.main.layers.{i}.", "bert.encoder.layer.{i}."
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu", "silu": "silu"}

RULES = [
    same("stacks.main.embedding.table.weight", "bert.embeddings.word_embeddings.weight"),
    same("stacks.main.positions.0.table.weight", "bert.embeddings.position_embeddings.weight"),
    same("stacks.main.embedding.segments.weight", "bert.embeddings.token_type_embeddings.weight"),
    *linear("stacks.main.embedding.norm", "bert.embeddings.LayerNorm"),
    *linear(OURS + "attention.q", THEIRS + "attention.self.query"),
    *linear(OURS + "attention.k", THEIRS + "attention.self.key"),
    *linear(OURS + "attention.v", THEIRS + "attention.self.value"),
    *linear(OURS + "attention.out", THEIRS + "attention.output.dense"),
    *linear(OURS + "block.attention_norm", THEIRS + "attention.output.LayerNorm"),
    *linear(OURS + "ffn.up", THEIRS + "intermediate.dense"),
    *linear(OURS + "ffn.down", THEIRS + "output.dense"),
    *linear(OURS + "block.ffn_norm", THEIRS + "output.LayerNorm"),
    *(r for role in ("pooled", "pair", "classes") for r in linear(f"heads.{role}.dense", "bert.pooler.dense")),
    *linear("heads.pair.out", "cls.seq_relationship"),
    *linear("heads.classes.out", "classifier"),
    *linear("heads.labels.out", "classifier"),
    *linear("heads.span.out", "qa_outputs"),
    *linear("heads.tokens.dense", "cls.predictions.transform.dense"),
    *linear("heads.tokens.norm", "cls.predictions.transform.LayerNorm"),
    same(
        "heads.tokens.bias",
        "cls.predictions.decoder.bias",
        needs="heads.tokens.out.weight",
        copies=("cls.predictions.bias",),
    ),
    same("heads.tokens.bias", "cls.predictions.bias"),
    same("heads.tokens.out.weight", "cls.predictions.decoder.weight"),
]


DEFAULTS: Config = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}


def sizes(c: Config) -> list[str]:
    """What BERT and ALBERT write alike."""
    return settings(
        "model",
        {
            "dim": c["hidden_size"],
            "n_layers": c["num_hidden_layers"],
            "n_heads": c["num_attention_heads"],
            "ffn_dim": c["intermediate_size"],
            "max_positions": c["max_position_embeddings"],
            "vocab_size": c["vocab_size"],
            "token_types": c["type_vocab_size"],
            "norm_eps": c["layer_norm_eps"],
            "tie_embeddings": c["tie_word_embeddings"],
            "dropout": c["hidden_dropout_prob"],
            "attention.dropout": c["attention_probs_dropout_prob"],
        },
    )


def read(c: Config) -> list[str]:
    expect(c, "position_embedding_type", "absolute", default="absolute")
    expect(c, "add_cross_attention", False)
    ffn = activation(c, "hidden_act", ACTIVATIONS, "gelu")
    causal = ["objective=clm"] if c["is_decoder"] else []
    return ["model=bert", f"ffn={ffn}", *causal, *sizes(c)]


def base(spec: ModelSpec) -> Config:
    """The reverse of `sizes`, with the activation."""
    s = spec.sizes
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    return {
        "hidden_size": s.dim,
        "num_hidden_layers": s.n_layers,
        "num_attention_heads": s.n_heads,
        "intermediate_size": s.ffn_dim,
        "max_position_embeddings": s.max_positions,
        "vocab_size": s.vocab_size,
        "type_vocab_size": s.token_types,
        "layer_norm_eps": s.norm_eps,
        "tie_word_embeddings": s.tie_embeddings,
        "hidden_act": names.get(spec.stacks[0].layers[0].parts["ffn"].name, "gelu"),
        "hidden_dropout_prob": s.dropout,
        "attention_probs_dropout_prob": s.attention.dropout,
    }


def write(spec: ModelSpec) -> Config:
    out = {"model_type": "bert", **base(spec), "is_decoder": spec.sizes.causal}
    return (
        {**out, "architectures": ["BertLMHeadModel"]} if spec.sizes.causal and list(spec.heads) == ["tokens"] else out
    )


def act(c: Config) -> str:
    return ACTIVATIONS[c["hidden_act"]]


def masked(c: Config) -> dict:
    return {"tokens": part("head", "mlm", act=act(c))}


HEADS = {
    "Model": Head(
        lambda c: {"pooled": part("head", "pooled", n_classes=0)},
        {"last_hidden_state": "hidden", "pooler_output": "head:pooled"},
        prefix="",
    ),
    "ForMaskedLM": Head(masked, {"logits": "head:tokens"}),
    "ForTokenClassification": Head(
        lambda c: {"labels": part("head", "token", n_classes=n_labels(c))}, {"logits": "head:labels"}
    ),
    "ForQuestionAnswering": Head(
        lambda c: {"span": part("head", "span")}, {"start_logits": "head:span:0", "end_logits": "head:span:1"}
    ),
    "ForSequenceClassification": Head(
        lambda c: {"classes": part("head", "pooled", n_classes=n_labels(c))}, {"logits": "head:classes"}
    ),
}
PRETRAINING = Head(
    lambda c: {**masked(c), "pair": part("head", "pooled")},
    {"prediction_logits": "head:tokens", "seq_relationship_logits": "head:pair"},
)
RENAME = {r"LayerNorm\.gamma$": "LayerNorm.weight", r"LayerNorm\.beta$": "LayerNorm.bias"}

ENTRIES = [
    Entry(
        model_types=("bert",),
        families=("bert",),
        read=read,
        write=write,
        defaults=DEFAULTS,
        rules=RULES,
        architectures={
            **{f"Bert{name}": head for name, head in HEADS.items()},
            "BertForPreTraining": PRETRAINING,
            "BertLMHeadModel": HEADS["ForMaskedLM"],
        },
        prefix="bert.",
        ignore=(
            r"embeddings\.position_ids$",
            r"^cls\.predictions\.decoder\.(weight|bias)$",
            r"^(bert\.)?pooler\.",
            r"^cls\.",
        ),
        head_key="cls.predictions.decoder.weight",
        embed_key="bert.embeddings.word_embeddings.weight",
        rename=RENAME,
    )
]
