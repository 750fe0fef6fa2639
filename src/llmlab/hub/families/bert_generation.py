"""BERT for generation (Rothe et al. 2020): without types and pooler, the next token by the table and a bias."""

from __future__ import annotations

from llmlab.config.spec import ModelSpec
from llmlab.hub.entry import Config, Entry, Head, part
from llmlab.hub.families.bert import BARE, DEFAULTS, IGNORE, TIED, embeddings, layers, read_as, write_as
from llmlab.hub.rules import same

RULES = [
    *embeddings("bert.embeddings."),
    *layers("bert.encoder.layer.{i}."),
    # transformers ties it to lm_head.bias and computes with this one (BertGenerationOnlyLMHead).
    same("heads.tokens.bias", "lm_head.decoder.bias", needs="heads.tokens.out.weight", copies=("lm_head.bias",)),
    same("heads.tokens.bias", "lm_head.bias"),
    same("heads.tokens.out.weight", "lm_head.decoder.weight"),
]


def read(c: Config) -> list[str]:
    # The family's own objective is the next token; an encoder of it looks both ways.
    both_ways = [] if c["is_decoder"] else ["objective=mlm"]
    return [*read_as("bert_generation", c), *both_ways]


def write(spec: ModelSpec) -> Config:
    out = write_as("bert-generation", spec, "BertGenerationDecoder")
    out.pop("type_vocab_size")
    return out


ENTRIES = [
    Entry(
        model_types=("bert-generation",),
        families=("bert_generation",),
        read=read,
        write=write,
        defaults={
            **{k: v for k, v in DEFAULTS.items() if k not in ("type_vocab_size", "classifier_dropout")},
            # BertGenerationConfig's: a SentencePiece vocabulary of its own and BERT large's sizes.
            "vocab_size": 50358,
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
        },
        rules=RULES,
        architectures={
            "BertGenerationDecoder": Head(
                lambda c: {"tokens": part("head", "lm", bias=True)}, {"logits": "head:tokens"}
            ),
            "BertGenerationEncoder": BARE,
        },
        prefix="bert.",
        ignore=(*IGNORE, TIED),
        head_key="lm_head.decoder.weight",
        embed_key="bert.embeddings.word_embeddings.weight",
    )
]
