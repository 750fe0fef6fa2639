"""RoBERTa: BERT with positions that count what is not padding, from the padding's id on; XLM-R and CamemBERT too."""

from __future__ import annotations

from dataclasses import replace

from llmlab.config.spec import ModelSpec
from llmlab.errors import UserError
from llmlab.hub.entry import LABELS, SPAN, Config, Entry, Head, n_labels, part
from llmlab.hub.families.bert import (
    BASE,
    DEFAULTS,
    IGNORE,
    PLAIN,
    TIED,
    embeddings,
    layers,
    masked_rules,
    read_as,
    write_as,
)
from llmlab.hub.rules import linear

RULES = [
    *embeddings("roberta.embeddings."),
    *layers("roberta.encoder.layer.{i}."),
    *linear("heads.pooled.dense", "roberta.pooler.dense"),
    # RoBERTa has no sentence pairs in pretraining (Liu et al. 2019, arXiv:1907.11692, section 4.2), so no
    # trained pooler: a classifier brings its own linear.
    *linear("heads.classes.dense", "classifier.dense"),
    *linear("heads.classes.out", "classifier.out_proj"),
    *PLAIN,
    *masked_rules("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias"),
]


def counted(c: Config, pad: int) -> list[str]:
    """Positions that count what is not the token `pad`, in the rows of the table behind its own."""
    return [f"position.pad_id={pad}", f"position.offset={pad + 1}"]


def pad_of(spec: ModelSpec) -> int:
    """The reverse: the id of padding."""
    options = spec.stacks[0].layers[0].parts["position"].options
    pad = options.get("pad_id")
    if pad is None:
        raise UserError(
            f"position={spec.stacks[0].layers[0].parts['position']} has no place in a {spec.family} checkpoint, which tells "
            "padding by its id; train with position.pad_id=ID position.offset=ID+1"
        )
    return pad


def read(c: Config) -> list[str]:
    pad = c["pad_token_id"]
    # Positions begin at padding_idx + 1, as in fairseq, so that 514 rows are 512 positions.
    own = {"max_positions": c["max_position_embeddings"] - pad - 1}
    return [*read_as("roberta", c, **own), *counted(c, pad)]


def write(spec: ModelSpec) -> Config:
    pad = pad_of(spec)
    out = write_as("roberta", spec, "RobertaForCausalLM")
    return {**out, "max_position_embeddings": spec.sizes.max_positions + pad + 1, "pad_token_id": pad}


def classes(c: Config) -> dict:
    """A head on the first token that no pooler comes before."""
    # RobertaClassificationHead drops out the first token's vector, and again what comes of the linear and tanh.
    options = {"n_classes": n_labels(c), "dropout": c.get("classifier_dropout"), "input_dropout": True}
    return {"classes": part("head", "pooled", **options)}


# RobertaLMHead calls gelu whatever hidden_act says.
MASKED = Head(lambda c: {"tokens": part("head", "mlm")}, {"logits": "head:tokens"})
HEADS = {
    "ForMaskedLM": MASKED,
    "Model": BASE,
    "ForCausalLM": MASKED,
    "ForSequenceClassification": Head(classes, {"logits": "head:classes"}),
    "ForTokenClassification": LABELS,
    "ForQuestionAnswering": SPAN,
}

ENTRY = Entry(
    model_types=("roberta",),
    families=("roberta",),
    read=read,
    write=write,
    # RobertaConfig's 1e-12 and 512 are BERT's; the published files say 1e-5 and 514.
    defaults={**DEFAULTS, "vocab_size": 50265, "pad_token_id": 1},
    rules=RULES,
    architectures={f"Roberta{name}": head for name, head in HEADS.items()},
    prefix="roberta.",
    ignore=(*IGNORE, TIED),
    head_key="lm_head.decoder.weight",
    embed_key="roberta.embeddings.word_embeddings.weight",
)
ENTRIES = [
    ENTRY,
    *(
        replace(
            ENTRY,
            model_types=(model_type,),
            families=(),
            defaults={**ENTRY.defaults, "vocab_size": vocabulary},
            architectures={f"{name}{of}": head for of, head in HEADS.items()},
        )
        # The classes' default is BERT's 30,522 for both; XLM-R's files say 250,002 and CamemBERT's 32,005.
        for model_type, name, vocabulary in (("xlm-roberta", "XLMRoberta", 30522), ("camembert", "Camembert", 30522))
    ),
]
