"""DistilBERT: a shallower BERT without types and pooler, under names of its own."""

from __future__ import annotations

from llmlab.config.spec import ModelSpec
from llmlab.hub.entry import LABELS, Config, Entry, Head, activation, n_labels, part, settings
from llmlab.hub.families.bert import ACTIVATIONS, BARE, IGNORE, OURS, PLAIN, act_name, embeddings, masked_rules
from llmlab.hub.rules import linear

THEIRS = "distilbert.transformer.layer.{i}."
EPS = 1e-12  # of every norm, whatever config.json says

RULES = [
    # The rule for token types finds no tensor of ours: DistilBERT has none (Sanh et
    # al. 2019, arXiv:1910.01108, section 3).
    *embeddings("distilbert.embeddings."),
    *(r for n in "qkv" for r in linear(f"{OURS}attention.{n}", f"{THEIRS}attention.{n}_lin")),
    *linear(OURS + "attention.out", THEIRS + "attention.out_lin"),
    *linear(OURS + "block.attention_norm", THEIRS + "sa_layer_norm"),
    *linear(OURS + "ffn.up", THEIRS + "ffn.lin1"),
    *linear(OURS + "ffn.down", THEIRS + "ffn.lin2"),
    *linear(OURS + "block.ffn_norm", THEIRS + "output_layer_norm"),
    *linear("heads.classes.dense", "pre_classifier"),
    *PLAIN,
    *(
        r
        for r in masked_rules("vocab_transform", "vocab_layer_norm", "vocab_projector", "vocab_projector.bias")
        # vocab_projector is one nn.Linear: the rule for a bias that is held twice would name the bias as its own copy.
        if not r.copies
    ),
]


DEFAULTS: Config = {
    "vocab_size": 30522,
    "dim": 768,
    "n_layers": 6,
    "n_heads": 12,
    "hidden_dim": 3072,
    "activation": "gelu",
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "qa_dropout": 0.1,
    "seq_classif_dropout": 0.2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}


def read(c: Config) -> list[str]:
    values = {
        "dim": c["dim"],
        "n_layers": c["n_layers"],
        "n_heads": c["n_heads"],
        "ffn_dim": c["hidden_dim"],
        "max_positions": c["max_position_embeddings"],
        "vocab_size": c["vocab_size"],
        "norm_eps": EPS,
        "tie_embeddings": c["tie_word_embeddings"],
        "dropout": c["dropout"],
        "attention.dropout": c["attention_dropout"],
    }
    ffn = activation(c, "activation", ACTIVATIONS, "gelu")
    return [
        "model=distilbert",
        f"ffn={ffn}",
        *settings("model", values),
        *settings("embedding", {"pad_id": c["pad_token_id"]}),
    ]


def write(spec: ModelSpec) -> Config:
    s = spec.sizes
    return {
        "model_type": "distilbert",
        "dim": s.dim,
        "n_layers": s.n_layers,
        "n_heads": s.n_heads,
        "hidden_dim": s.ffn_dim,
        "max_position_embeddings": s.max_positions,
        "vocab_size": s.vocab_size,
        "tie_word_embeddings": s.tie_embeddings,
        "activation": act_name(spec),
        "dropout": s.dropout,
        "attention_dropout": s.attention.dropout,
    }


def masked(c: Config) -> dict:
    return {"tokens": part("head", "mlm", act=ACTIVATIONS[c["activation"]])}


def classes(c: Config) -> dict:
    options = {"n_classes": n_labels(c), "dropout": c["seq_classif_dropout"]}
    # ReLU where BERT's pooler has tanh.
    return {"classes": part("head", "pooled", act="relu", **options)}


ENTRIES = [
    Entry(
        model_types=("distilbert",),
        families=("distilbert",),
        read=read,
        write=write,
        defaults=DEFAULTS,
        rules=RULES,
        architectures={
            "DistilBertForMaskedLM": Head(masked, {"logits": "head:tokens"}),
            "DistilBertModel": BARE,
            "DistilBertForSequenceClassification": Head(classes, {"logits": "head:classes"}),
            "DistilBertForTokenClassification": LABELS,
            "DistilBertForQuestionAnswering": Head(
                # DistilBertForQuestionAnswering drops out what it reads; BertForQuestionAnswering does not.
                lambda c: {"span": part("head", "span", dropout=c["qa_dropout"])},
                {"start_logits": "head:span:0", "end_logits": "head:span:1"},
            ),
        },
        prefix="distilbert.",
        ignore=IGNORE,
        head_key="vocab_projector.weight",
        embed_key="distilbert.embeddings.word_embeddings.weight",
    )
]
