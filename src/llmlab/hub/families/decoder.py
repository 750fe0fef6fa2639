"""The classes that the reference has for most decoders: next token, one answer a text or a token, a span, and none."""

from __future__ import annotations

from llmlab.config.spec import PartSpec
from llmlab.hub.entry import LABELS, SCORED, SPAN, Config, Head, part
from llmlab.hub.rules import linear, same

HEADS = [
    same("heads.scalar.out.weight", "score.weight"),
    *linear("heads.labels.out", "classifier"),
    *linear("heads.span.out", "qa_outputs"),
]


def classes(name: str, base: str | None = "", *, bias: bool = False) -> dict[str, Head]:
    """Heads by the name of the reference class. base: the prefix of the base model's tensors in a file of its own, None if
    it is that of the others. bias: on the logits of the next token.
    """

    def lm(c: Config) -> dict[str, PartSpec]:
        return {"tokens": part("head", "lm", bias=True) if bias else part("head", "lm")}

    return {
        f"{name}ForCausalLM": Head(lm, {"logits": "head:tokens"}),
        f"{name}ForSequenceClassification": SCORED,
        f"{name}ForTokenClassification": LABELS,
        f"{name}ForQuestionAnswering": SPAN,
        f"{name}Model": Head(lambda c: {}, {"last_hidden_state": "hidden"}, prefix=base),
    }
