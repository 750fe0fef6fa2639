"""DeBERTa-v2 and v3, of the published kind: distances by the attention's own projections, no positions in the embedding."""

from __future__ import annotations

from llmlab.config.spec import ModelSpec
from llmlab.errors import UserError
from llmlab.hub.entry import LABELS, SPAN, Config, Entry, Head, expect, n_labels, part, settings
from llmlab.hub.families import bert
from llmlab.hub.families.bert import (
    ACTIVATIONS,
    BARE,
    IGNORE,
    OURS,
    PLAIN,
    base,
    embeddings,
    masked_rules,
    read_as,
)
from llmlab.hub.rules import linear, same

THEIRS = "deberta.encoder.layer.{i}."
POSITION = "stacks.main.positions.0."
TERMS = {"c2p": "content_to_position", "p2c": "position_to_content"}

RULES = [
    *(r for r in embeddings("deberta.embeddings.") if "positions" not in r.ours[0]),
    same(POSITION + "table.weight", "deberta.encoder.rel_embeddings.weight"),
    # With norm_rel_ebd=layer_norm: over the table of distances, once a forward (DebertaV2Encoder.get_rel_embedding).
    *linear(POSITION + "norm", "deberta.encoder.LayerNorm"),
    *(
        r
        for ours, theirs in (("q", "query"), ("k", "key"), ("v", "value"))
        for r in linear(f"{OURS}attention.{ours}", f"{THEIRS}attention.self.{theirs}_proj")
    ),
    *linear(OURS + "attention.out", THEIRS + "attention.output.dense"),
    *linear(OURS + "block.attention_norm", THEIRS + "attention.output.LayerNorm"),
    *linear(OURS + "ffn.up", THEIRS + "intermediate.dense"),
    *linear(OURS + "ffn.down", THEIRS + "output.dense"),
    *linear(OURS + "block.ffn_norm", THEIRS + "output.LayerNorm"),
    # ContextPooler stands beside the base model, not inside, and has GELU where BERT's has tanh.
    *linear("heads.classes.dense", "pooler.dense"),
    *PLAIN,
    *masked_rules(
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        "cls.predictions.decoder",
        "cls.predictions.bias",
    ),
]
DEFAULTS: Config = {
    "vocab_size": 128100,
    "hidden_size": 1536,
    "num_hidden_layers": 24,
    "num_attention_heads": 24,
    "intermediate_size": 6144,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
    # DebertaV2Config's defaults have absolute positions alone; the published files state their relative ones.
    "relative_attention": False,
    "max_relative_positions": -1,
    "position_buckets": -1,
    "share_att_key": False,
    "norm_rel_ebd": "none",
    "pad_token_id": 0,
    "position_biased_input": True,
    "pos_att_type": None,
    "pooler_dropout": 0.0,
    "pooler_hidden_act": "gelu",
    # The head for masked tokens as BERT has it; without it the class computes by
    # the token table under `lm_predictions`.
    "legacy": True,
    "tie_word_embeddings": True,
}


def read(c: Config) -> list[str]:
    expect(c, "relative_attention", True)
    expect(c, "position_biased_input", False)
    # Without it distances have projections of their own, pos_key_proj and pos_query_proj (DeBERTa v1's way).
    expect(c, "share_att_key", True)
    # A convolution beside the first layer: the v2 xlarge and xxlarge have one of 3, v3 has none.
    expect(c, "conv_kernel_size", 0, default=0)
    expect(c, "embedding_size", c["hidden_size"], default=c["hidden_size"])
    head = c["hidden_size"] // c["num_attention_heads"]
    expect(c, "attention_head_size", head, default=head)
    norm = expect(c, "norm_rel_ebd", "none", "layer_norm")
    terms = c["pos_att_type"] or []
    # A list, or in the published files a text: "p2c|c2p".
    terms = [t.strip() for t in terms.lower().split("|")] if isinstance(terms, str) else terms
    if not terms or set(terms) - set(TERMS):
        raise UserError(f"config.json: pos_att_type={c['pos_att_type']!r} is not implemented; known: 'c2p', 'p2c'")
    buckets, longest = c["position_buckets"], c["max_relative_positions"]
    values = {
        # -1 means none, in both keys: then each distance up to the second has a row (DisentangledSelfAttention).
        "buckets": buckets if buckets > 0 else None,
        "max_distance": longest if longest > 0 else c["max_position_embeddings"],
        "normed": norm == "layer_norm",
        **{ours: theirs in terms for theirs, ours in TERMS.items()},
    }
    plain = {**c, "is_decoder": False, "add_cross_attention": False}
    return [*read_as("deberta_v3", plain), *settings("position", values)]


def write(spec: ModelSpec) -> Config:
    position = spec.stacks[0].layers[0].parts["position"].options
    return {
        "model_type": "deberta-v2",
        **base(spec),
        "relative_attention": True,
        "position_biased_input": False,
        "share_att_key": True,
        "pos_att_type": [theirs for theirs, ours in TERMS.items() if position[ours]],
        "position_buckets": position["buckets"] or -1,
        "max_relative_positions": position["max_distance"],
        "norm_rel_ebd": "layer_norm" if position["normed"] else "none",
    }


def masked(c: Config) -> dict:
    expect(c, "legacy", True)
    return bert.masked(c)


def classes(c: Config) -> dict:
    act = ACTIVATIONS[expect(c, "pooler_hidden_act", *ACTIVATIONS, default="gelu")]
    # On the first token's state before the pooler's linear, where our head has one dropout behind it.
    expect(c, "pooler_dropout", 0, default=0)
    return {"classes": part("head", "pooled", n_classes=n_labels(c), act=act, dropout=c.get("cls_dropout"))}


ENTRIES = [
    Entry(
        model_types=("deberta-v2",),
        families=("deberta_v3",),
        read=read,
        write=write,
        defaults=DEFAULTS,
        rules=RULES,
        architectures={
            "DebertaV2Model": BARE,
            "DebertaV2ForMaskedLM": Head(masked, {"logits": "head:tokens"}),
            "DebertaV2ForSequenceClassification": Head(classes, {"logits": "head:classes"}),
            "DebertaV2ForTokenClassification": LABELS,
            "DebertaV2ForQuestionAnswering": SPAN,
        },
        prefix="deberta.",
        # v3's files hold the heads of pretraining under these names; positions that nothing
        # adds are ignored by transformers too.
        ignore=(*IGNORE, r"^cls\.", r"^(lm_predictions|mask_predictions)\.", r"position_embeddings"),
        head_key="cls.predictions.decoder.weight",
        embed_key="deberta.embeddings.word_embeddings.weight",
    )
]
