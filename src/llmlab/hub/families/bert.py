"""BERT: post-norm encoder, or decoder, with the heads of its classes. Its kin import its rules and its reading.

SpanBERT's files are BERT's.
"""

from __future__ import annotations

from llmlab.config.spec import ModelSpec
from llmlab.errors import UserError
from llmlab.hub.entry import LABELS, SPAN, Config, Entry, Head, activation, expect, n_labels, part, settings
from llmlab.hub.rules import Rule, linear, same

OURS = "stacks.main.layers.{i}."
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def embeddings(theirs: str) -> list[Rule]:
    return [
        same("stacks.main.embedding.table.weight", theirs + "word_embeddings.weight"),
        same("stacks.main.positions.0.table.weight", theirs + "position_embeddings.weight"),
        # BertModel reads row 0 where a caller gives no token types, so the table adds to every token either way.
        same("stacks.main.embedding.segments.weight", theirs + "token_type_embeddings.weight"),
        *linear("stacks.main.embedding.norm", theirs + "LayerNorm"),
    ]


def layers(theirs: str) -> list[Rule]:
    """A layer's attention, cross-attention where there is one, and feed-forward."""
    rules = [
        *linear(OURS + "ffn.up", theirs + "intermediate.dense"),
        *linear(OURS + "ffn.down", theirs + "output.dense"),
        # Post-norm: each LayerNorm follows the sum with the residual (BertSelfOutput, BertOutput), hence "output".
        *linear(OURS + "block.ffn_norm", theirs + "output.LayerNorm"),
    ]
    for ours, name in (("attention", "attention"), ("cross_attention", "crossattention")):
        for o, t in (("q", "self.query"), ("k", "self.key"), ("v", "self.value"), ("out", "output.dense")):
            rules += linear(f"{OURS}{ours}.{o}", f"{theirs}{name}.{t}")
        rules += linear(f"{OURS}block.{ours}_norm", f"{theirs}{name}.output.LayerNorm")
    return rules


def masked_rules(dense: str, norm: str, decoder: str, bias: str) -> list[Rule]:
    """A head for masked tokens. Where it is not tied, the logits' bias lies with the decoder, and again under `bias`."""
    return [
        *linear("heads.tokens.dense", dense),
        *linear("heads.tokens.norm", norm),
        same("heads.tokens.bias", f"{decoder}.bias", needs="heads.tokens.out.weight", copies=(bias,)),
        same("heads.tokens.bias", bias),
        same("heads.tokens.out.weight", f"{decoder}.weight"),
    ]


PLAIN = [  # heads that are one linear
    *linear("heads.classes.out", "classifier"),
    *linear("heads.labels.out", "classifier"),
    *linear("heads.span.out", "qa_outputs"),
]
RULES = [
    *embeddings("bert.embeddings."),
    *layers("bert.encoder.layer.{i}."),
    # The pooler belongs to the base model there and to the head here: a class has at most one of these three.
    *(r for role in ("pooled", "pair", "classes") for r in linear(f"heads.{role}.dense", "bert.pooler.dense")),
    *linear("heads.pair.out", "cls.seq_relationship"),
    *PLAIN,
    *masked_rules(
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        "cls.predictions.decoder",
        "cls.predictions.bias",
    ),
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
    # None means hidden_dropout_prob (BertForSequenceClassification).
    "classifier_dropout": None,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    # TensorFlow BERT's; added to a variance in float16 it would be 0.
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}


def sizes(c: Config) -> Config:
    """Our sizes from the keys that all of BERT's kin share."""
    return {
        "dim": c["hidden_size"],
        "n_layers": c["num_hidden_layers"],
        "n_heads": c["num_attention_heads"],
        "ffn_dim": c["intermediate_size"],
        "max_positions": c["max_position_embeddings"],
        "vocab_size": c["vocab_size"],
        # Lacking where the family has no types at all: MPNet, BERT for generation.
        "token_types": c.get("type_vocab_size", 0),
        "norm_eps": c["layer_norm_eps"],
        "tie_embeddings": c["tie_word_embeddings"],
        "dropout": c["hidden_dropout_prob"],
        "attention.dropout": c["attention_probs_dropout_prob"],
    }


def direction(c: Config) -> list[str]:
    """An encoder, or a decoder, which may read another model's states."""
    if c["add_cross_attention"] and not c["is_decoder"]:
        # BertLayer raises for it too: only a decoder may have the third sublayer.
        raise UserError("config.json: add_cross_attention=True is a decoder's, but is_decoder=False")
    causal = ["objective=clm"] if c["is_decoder"] else []
    cross = ["+attention@stacks.main.cross_attention=mha"] if c["add_cross_attention"] else []
    return [*causal, *cross]


def read_as(family: str, c: Config, **own: object) -> list[str]:
    """own: sizes that differ from what the layout says."""
    # transformers 5 knows no other type any more; 4 had "relative_key" and
    # "relative_key_query", whose tensors would be left over.
    expect(c, "position_embedding_type", "absolute", default="absolute")
    ffn = activation(c, "hidden_act", ACTIVATIONS, "gelu")
    return [
        f"model={family}",
        f"ffn={ffn}",
        *direction(c),
        *settings("model", {**sizes(c), **own}),
        # nn.Embedding's padding_idx: the row is read like any other and gets no gradient.
        *settings("embedding", {"pad_id": c["pad_token_id"]}),
    ]


def read(c: Config) -> list[str]:
    return [*read_as("bert", c), *tokens_alone(c, "BertForPreTraining")]


def tokens_alone(c: Config, paired: str) -> list[str]:
    """The objective of a checkpoint whose class is not `paired`, the one that has the head for pairs of texts as well."""
    # transformers writes `architectures` when a model is saved.
    return [] if c.get("is_decoder") or paired in (c.get("architectures") or ()) else ["objective=mlm_only"]


def base(spec: ModelSpec) -> Config:
    """The reverse of `sizes`, with the activation."""
    s = spec.sizes
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
        "hidden_act": act_name(spec),
        "hidden_dropout_prob": s.dropout,
        "attention_probs_dropout_prob": s.attention.dropout,
    }


def act_name(spec: ModelSpec) -> str:
    # Reversed, so that of several names for one activation the first is written.
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    return names.get(spec.stacks[0].layers[0].parts["ffn"].name, "gelu")


def write_as(model_type: str, spec: ModelSpec, causal: str) -> Config:
    """causal: the class of a decoder that says the next token."""
    out = {
        "model_type": model_type,
        **base(spec),
        "is_decoder": spec.sizes.causal,
        "add_cross_attention": spec.stacks[0].cross_attention is not None,
    }
    # Only a decoder needs it: both kinds have the same heads, and `described` would take the first class that fits.
    return {**out, "architectures": [causal]} if spec.sizes.causal and list(spec.heads) == ["tokens"] else out


def write(spec: ModelSpec) -> Config:
    return write_as("bert", spec, "BertLMHeadModel")


def act(c: Config) -> str:
    return ACTIVATIONS[c["hidden_act"]]


def masked(c: Config) -> dict:
    return {"tokens": part("head", "mlm", act=act(c))}


def classes(c: Config) -> dict:
    return {"classes": part("head", "pooled", n_classes=n_labels(c), dropout=c["classifier_dropout"])}


def pair(c: Config) -> dict:
    # BertOnlyNSPHead reads the pooler's output as it is, where a classifier drops some of it out.
    return {"pair": part("head", "pooled", dropout=0.0)}


MASKED = Head(masked, {"logits": "head:tokens"})
BASE = Head(
    lambda c: {"pooled": part("head", "pooled", n_classes=0)},
    {"last_hidden_state": "hidden", "pooler_output": "head:pooled"},
    prefix="",
)
BARE = Head(lambda c: {}, {"last_hidden_state": "hidden"}, prefix="")
HEADS = {
    "Model": BASE,
    "ForMaskedLM": MASKED,
    "ForTokenClassification": LABELS,
    "ForQuestionAnswering": SPAN,
    "ForSequenceClassification": Head(classes, {"logits": "head:classes"}),
}
# TensorFlow's names, which the first converted checkpoints kept.
RENAME = {r"LayerNorm\.gamma$": "LayerNorm.weight", r"LayerNorm\.beta$": "LayerNorm.bias"}
# Buffers of older versions, and the pooler, which published files hold though
# BertForMaskedLM has none (add_pooling_layer=False).
IGNORE = (r"embeddings\.position_ids$", r"^(\w+\.)?pooler\.")
TIED = r"^lm_head\.decoder\."  # stored again though it is the token table and lm_head.bias

ENTRIES = [
    Entry(
        model_types=("bert",),
        families=("bert", "spanbert"),
        read=read,
        write=write,
        defaults=DEFAULTS,
        rules=RULES,
        architectures={
            **{f"Bert{name}": head for name, head in HEADS.items()},
            "BertForPreTraining": Head(
                lambda c: {**masked(c), **pair(c)},
                {"prediction_logits": "head:tokens", "seq_relationship_logits": "head:pair"},
            ),
            "BertForNextSentencePrediction": Head(pair, {"logits": "head:pair"}),
            "BertLMHeadModel": MASKED,
        },
        prefix="bert.",
        # The heads of pretraining, in files that are read as a classifier or a base model.
        ignore=(*IGNORE, r"^cls\."),
        head_key="cls.predictions.decoder.weight",
        embed_key="bert.embeddings.word_embeddings.weight",
        rename=RENAME,
    )
]
