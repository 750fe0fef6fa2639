"""ALBERT: groups of layers that are run again and again, a factorized embedding."""

from __future__ import annotations

import itertools

from llmlab.config.spec import ModelSpec
from llmlab.errors import UserError
from llmlab.hub.entry import LABELS, SPAN, Config, Entry, Head, activation, expect, n_labels, part, settings
from llmlab.hub.families.bert import (
    ACTIVATIONS,
    BASE,
    IGNORE,
    MASKED,
    PLAIN,
    base,
    embeddings,
    masked,
    masked_rules,
    sizes,
    tokens_alone,
)
from llmlab.hub.rules import Rule, linear

OURS = "stacks.main.layers."
RULES = [
    *embeddings("albert.embeddings."),
    # A linear even where both widths are the same (AlbertTransformer), unlike ELECTRA's.
    *linear("stacks.main.embedding.project", "albert.encoder.embedding_hidden_mapping_in"),
    # The pooler is a bare nn.Linear under the base model's name, tanh beside it: no `.dense`.
    *(r for role in ("pooled", "pair", "classes") for r in linear(f"heads.{role}.dense", "albert.pooler")),
    *linear("heads.pair.out", "sop_classifier.classifier"),
    *PLAIN,
    *masked_rules("predictions.dense", "predictions.LayerNorm", "predictions.decoder", "predictions.bias"),
]
PARTS = {
    "attention.q": "attention.query",
    "attention.k": "attention.key",
    "attention.v": "attention.value",
    "attention.out": "attention.dense",
    "block.attention_norm": "attention.LayerNorm",
    "ffn.up": "ffn",
    # Both linears lie flat in AlbertLayer, not in an `intermediate` and an `output` as BERT's do.
    "ffn.down": "ffn_output",
    "block.ffn_norm": "full_layer_layer_norm",
}


def layers(c: Config) -> list[Rule]:
    """Each group's inner layers, which are stored one after the other here."""
    rules = []
    for group, inner in itertools.product(range(c["num_hidden_groups"]), range(c["inner_group_num"])):
        ours = f"{OURS}{group * c['inner_group_num'] + inner}."
        theirs = f"albert.encoder.albert_layer_groups.{group}.albert_layers.{inner}."
        rules += [r for o, t in PARTS.items() for r in linear(ours + o, theirs + t)]
    return rules


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
    # AlbertConfig's zeros: the largest ALBERT did better without dropout (Lan et al. 2019, arXiv:1909.11942).
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "classifier_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}


def order(n: int, groups: int, inner: int) -> list[int]:
    """The stored layers as they are run: n times all layers of a group, the groups one after the other."""
    # As AlbertTransformer divides, in floats: int(i / (num_hidden_layers / num_hidden_groups)).
    return [int(i / (n / groups)) * inner + j for i in range(n) for j in range(inner)]


def read(c: Config) -> list[str]:
    expect(c, "position_embedding_type", "absolute", default="absolute")
    n, inner = c["num_hidden_layers"], c["inner_group_num"]
    ffn = activation(c, "hidden_act", ACTIVATIONS, "gelu_new")
    return [
        "model=albert",
        f"ffn={ffn}",
        *settings("model", {**sizes(c), "n_layers": n * inner}),
        *settings("embedding", {"width": c["embedding_size"], "pad_id": c["pad_token_id"]}),
        f"execute={order(n, c['num_hidden_groups'], inner)}".replace(" ", ""),
        *tokens_alone(c, "AlbertForPreTraining"),
    ]


def write(spec: ModelSpec) -> Config:
    execute = list(spec.stacks[0].execute)
    stored = max(execute) + 1
    # The smallest inner_group_num first: one order may be spelt with larger groups too.
    ways = [(len(execute) // k, stored // k, k) for k in range(1, stored + 1) if not (len(execute) % k or stored % k)]
    found = next((way for way in ways if order(*way) == execute), None)
    if found is None:
        raise UserError(f"execute={execute} has no place in an ALBERT config.json: its groups run one after the other")
    n, groups, inner = found
    width = spec.stacks[0].embedding.options.get("width") or max(16, spec.sizes.dim // 4)
    return {
        "model_type": "albert",
        **base(spec),
        "num_hidden_layers": n,
        "num_hidden_groups": groups,
        "inner_group_num": inner,
        "embedding_size": width,
    }


def classes(c: Config) -> dict:
    return {"classes": part("head", "pooled", n_classes=n_labels(c), dropout=c["classifier_dropout_prob"])}


ENTRIES = [
    Entry(
        model_types=("albert",),
        families=("albert",),
        read=read,
        write=write,
        defaults=DEFAULTS,
        rules=RULES,
        architectures={
            "AlbertModel": BASE,
            "AlbertForMaskedLM": MASKED,
            "AlbertForPreTraining": Head(
                lambda c: {**masked(c), "pair": part("head", "pooled", dropout=c["classifier_dropout_prob"])},
                {"prediction_logits": "head:tokens", "sop_logits": "head:pair"},
            ),
            "AlbertForSequenceClassification": Head(classes, {"logits": "head:classes"}),
            "AlbertForTokenClassification": LABELS,
            "AlbertForQuestionAnswering": SPAN,
        },
        prefix="albert.",
        ignore=(*IGNORE, r"^predictions\.(decoder\.|bias$|dense\.|LayerNorm\.)", r"^sop_classifier\."),
        head_key="predictions.decoder.weight",
        embed_key="albert.embeddings.word_embeddings.weight",
        layout=layers,
    )
]
