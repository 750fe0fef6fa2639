"""The classes that the reference has for most decoders: next token, one answer a text or a token, a span, and none."""

from __future__ import annotations

from typing import Any

from llmlab.hub.entry import Config, Head, n_labels, part
from llmlab.hub.rules import linear, same

HEADS = [
    same("heads.scores.out.weight", "score.weight"),
    *linear("heads.labels.out", "classifier"),
    *linear("heads.span.out", "qa_outputs"),
]


def classes(name: str, base: str | None = "", **head: Any) -> dict[str, Head]:
    """By the name of the family. base: prefix of the base model's tensors in its own file, None as in the others.

    head: options of the next token's head.
    """

    def lm(c: Config) -> dict:
        return {"tokens": part("head", "lm", **head)}

    return {
        f"{name}ForCausalLM": Head(lm, {"logits": "head:tokens"}),
        f"{name}ForSequenceClassification": Head(
            lambda c: {"scores": part("head", "token", n_classes=n_labels(c), bias=False)}, {"logits": "last:scores"}
        ),
        f"{name}ForTokenClassification": Head(
            lambda c: {"labels": part("head", "token", n_classes=n_labels(c))}, {"logits": "head:labels"}
        ),
        f"{name}ForQuestionAnswering": Head(
            lambda c: {"span": part("head", "span")}, {"start_logits": "head:span:0", "end_logits": "head:span:1"}
        ),
        f"{name}Model": Head(lambda c: {}, {"last_hidden_state": "hidden"}, prefix=base),
    }
