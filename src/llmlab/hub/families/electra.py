"""ELECTRA: BERT whose embedding may be narrower, as generator and as discriminator."""

from __future__ import annotations

from llmlab.config.spec import ModelSpec
from llmlab.hub.entry import LABELS, SPAN, Config, Entry, Head, n_labels, part
from llmlab.hub.families.bert import (
    BARE,
    DEFAULTS,
    IGNORE,
    PLAIN,
    act,
    embeddings,
    layers,
    read_as,
    write_as,
)
from llmlab.hub.rules import linear, same

RULES = [
    *embeddings("electra.embeddings."),
    # Built only where the widths differ (ElectraModel), so that a base model's file has none.
    *linear("stacks.main.embedding.project", "electra.embeddings_project"),
    *layers("electra.encoder.layer.{i}."),
    *linear("heads.tokens.dense", "generator_predictions.dense"),
    *linear("heads.tokens.norm", "generator_predictions.LayerNorm"),
    # A plain nn.Linear, whose bias lies with it and not again under another name, as BERT's does.
    same("heads.tokens.bias", "generator_lm_head.bias"),
    same("heads.tokens.out.weight", "generator_lm_head.weight"),
    *linear("heads.replaced.dense", "discriminator_predictions.dense"),
    *linear("heads.replaced.out", "discriminator_predictions.dense_prediction"),
    *linear("heads.classes.dense", "classifier.dense"),
    *linear("heads.classes.out", "classifier.out_proj"),
    *PLAIN,
]


def read(c: Config) -> list[str]:
    narrow = c["embedding_size"] != c["hidden_size"]
    width = ["embedding=factorized", f"embedding.width={c['embedding_size']}"] if narrow else ["embedding=bert"]
    return [*width, *read_as("electra", c)]


def write(spec: ModelSpec) -> Config:
    embedding, dim = spec.stacks[0].embedding, spec.sizes.dim
    width = dim if embedding.name == "bert" else embedding.options.get("width") or max(16, dim // 4)
    return {**write_as("electra", spec, "ElectraForCausalLM"), "embedding_size": width}


def classes(c: Config) -> dict:
    options = {"n_classes": n_labels(c), "dropout": c["classifier_dropout"], "input_dropout": True}
    # GELU where BERT has tanh (ElectraClassificationHead), whatever hidden_act and summary_activation say.
    return {"classes": part("head", "pooled", act="gelu", **options)}


# ElectraGeneratorPredictions has GELU, whatever hidden_act says; the discriminator goes by hidden_act.
GENERATOR = Head(lambda c: {"tokens": part("head", "mlm")}, {"logits": "head:tokens"})
ENTRIES = [
    Entry(
        model_types=("electra",),
        families=("electra",),
        read=read,
        write=write,
        defaults={
            **DEFAULTS,
            "embedding_size": 128,
            "hidden_size": 256,
            "num_attention_heads": 4,
            "intermediate_size": 1024,
        },
        rules=RULES,
        architectures={
            "ElectraForPreTraining": Head(
                lambda c: {"replaced": part("head", "replaced", act=act(c))}, {"logits": "head:replaced"}
            ),
            "ElectraModel": BARE,
            "ElectraForMaskedLM": GENERATOR,
            "ElectraForCausalLM": GENERATOR,
            "ElectraForSequenceClassification": Head(classes, {"logits": "head:classes"}),
            "ElectraForTokenClassification": LABELS,
            "ElectraForQuestionAnswering": SPAN,
        },
        prefix="electra.",
        ignore=IGNORE,
        head_key="generator_lm_head.weight",
        embed_key="electra.embeddings.word_embeddings.weight",
    )
]
