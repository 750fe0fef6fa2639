"""The classes that the reference has for most decoders: next token, one answer a text or a token, a span, and none."""

from __future__ import annotations

from llmlab.config.spec import PartSpec
from llmlab.hub.entry import LABELS, SCORED, SPAN, Config, Head, part
from llmlab.hub.rules import linear, same

# transformers sets these linears beside the base model, not inside it, so no base prefix stands before their names.
HEADS = [
    # GenericForSequenceClassification builds its linear with bias=False; those of tokens and spans have one.
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
        # A bare base class saves its tensors without a prefix: that is the attribute
        # by which a class with a head holds it.
        f"{name}Model": Head(lambda c: {}, {"last_hidden_state": "hidden"}, prefix=base),
    }
