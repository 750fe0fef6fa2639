"""MPNet: RoBERTa's positions and heads, and one table of relative biases for all layers."""

from __future__ import annotations

from llmlab.config.spec import ModelSpec
from llmlab.errors import UserError
from llmlab.hub.entry import LABELS, SPAN, Config, Entry, Head, expect, part
from llmlab.hub.families.bert import (
    BASE,
    DEFAULTS,
    IGNORE,
    OURS,
    PLAIN,
    TIED,
    embeddings,
    masked_rules,
    read_as,
    write_as,
)
from llmlab.hub.families.roberta import classes, counted, pad_of
from llmlab.hub.rules import linear, same

THEIRS = "mpnet.encoder.layer.{i}."
# MPNetEmbeddings sets padding_idx = 1, and compute_position_bias has num_buckets=32 as a default that no call changes.
PAD, BUCKETS = 1, 32  # whatever config.json says

RULES = [
    same("stacks.main.positions.0.learned.table.weight", "mpnet.embeddings.position_embeddings.weight"),
    # One table for all layers, made once in MPNetEncoder and handed down, as T5's is.
    same("stacks.main.positions.0.table.weight", "mpnet.encoder.relative_attention_bias.weight"),
    # Both kinds of positions are one part here, so that BERT's rule for the learnt table would name the other.
    *(r for r in embeddings("mpnet.embeddings.") if "positions" not in r.ours[0]),
    *(r for n in "qkv" for r in linear(f"{OURS}attention.{n}", f"{THEIRS}attention.attn.{n}")),
    *linear(OURS + "attention.out", THEIRS + "attention.attn.o"),
    *linear(OURS + "block.attention_norm", THEIRS + "attention.LayerNorm"),
    *linear(OURS + "ffn.up", THEIRS + "intermediate.dense"),
    *linear(OURS + "ffn.down", THEIRS + "output.dense"),
    *linear(OURS + "block.ffn_norm", THEIRS + "output.LayerNorm"),
    *linear("heads.pooled.dense", "mpnet.pooler.dense"),
    *linear("heads.classes.dense", "classifier.dense"),
    *linear("heads.classes.out", "classifier.out_proj"),
    *PLAIN,
    *masked_rules("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias"),
]


def read(c: Config) -> list[str]:
    # A larger table would be made and its rows beyond 32 never read: compute_position_bias keeps its own number.
    expect(c, "relative_attention_num_buckets", BUCKETS)
    own = {"max_positions": c["max_position_embeddings"] - PAD - 1}
    return [
        # MPNetConfig has neither of the first two keys: there is no decoder.
        *read_as("mpnet", {**c, "is_decoder": False, "add_cross_attention": False, "pad_token_id": PAD}, **own),
        *counted(c, PAD),
        "objective=mlm",
    ]


def write(spec: ModelSpec) -> Config:
    if pad_of(spec) != PAD:
        raise UserError(f"position.pad_id={pad_of(spec)} has no place in an MPNet checkpoint, whose padding is {PAD}")
    out = write_as("mpnet", spec, "MPNetForMaskedLM")
    for name in ("type_vocab_size", "is_decoder", "add_cross_attention"):
        out.pop(name)
    return {**out, "max_position_embeddings": spec.sizes.max_positions + PAD + 1, "pad_token_id": PAD}


LEFT_OUT = ("type_vocab_size", "is_decoder", "add_cross_attention", "classifier_dropout")
ENTRIES = [
    Entry(
        model_types=("mpnet",),
        families=("mpnet",),
        read=read,
        write=write,
        looks_by="mlm",
        defaults={
            **{k: v for k, v in DEFAULTS.items() if k not in LEFT_OUT},
            "vocab_size": 30527,
            "pad_token_id": PAD,
            "relative_attention_num_buckets": BUCKETS,
        },
        rules=RULES,
        architectures={
            "MPNetForMaskedLM": Head(lambda c: {"tokens": part("head", "mlm")}, {"logits": "head:tokens"}),
            "MPNetModel": BASE,
            "MPNetForSequenceClassification": Head(classes, {"logits": "head:classes"}),
            "MPNetForTokenClassification": LABELS,
            "MPNetForQuestionAnswering": SPAN,
        },
        prefix="mpnet.",
        ignore=(*IGNORE, TIED),
        head_key="lm_head.decoder.weight",
        embed_key="mpnet.embeddings.word_embeddings.weight",
    )
]
