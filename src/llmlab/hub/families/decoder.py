"""The classes that the reference has for most decoders: next token, one answer a text or a token, a span, and none."""

from __future__ import annotations

from typing import Any

from llmlab.hub.entry import LABELS, SCORED, SPAN, Config, Head, part
from llmlab.hub.rules import linear, same

HEADS = [
    same("heads.scalar.out.weight", "score.weight"),
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
        f"{name}ForSequenceClassification": SCORED,
        f"{name}ForTokenClassification": LABELS,
        f"{name}ForQuestionAnswering": SPAN,
        f"{name}Model": Head(lambda c: {}, {"last_hidden_state": "hidden"}, prefix=base),
    }
