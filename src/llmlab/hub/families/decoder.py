"""The classes that the reference has for most decoders: next token, one answer a text or a token, a span, and none."""

from __future__ import annotations

from dataclasses import replace

from llmlab.hub.entry import LABELS, SCORED, SPAN, Head, part
from llmlab.hub.rules import Rule, linear, same


def _linears(labels: str) -> list[Rule]:
    # transformers sets these linears beside the base model, not inside it, so no base prefix stands before their names.
    return [
        # GenericForSequenceClassification builds its linear with bias=False; those of tokens and spans have one.
        same("heads.scalar.out.weight", "score.weight"),
        *linear("heads.labels.out", labels),
        *linear("heads.span.out", "qa_outputs"),
    ]


# GenericForTokenClassification (modeling_layers.py), of which LLaMA's, Phi's and StableLM's classes are made, calls its
# linear `score`, as the one for texts is called; classes with code of their own, GPT-2's and its kin's, say `classifier`.
HEADS, GENERIC_HEADS = _linears("classifier"), _linears("score")
TOKENS, SPANS = "TokenClassification", "QuestionAnswering"
LM = Head(lambda c: {"tokens": part("head", "lm")}, {"logits": "head:tokens"})
BIASED_LM = Head(lambda c: {"tokens": part("head", "lm", bias=True)}, {"logits": "head:tokens"})


def classes(
    name: str,
    *,
    bias: bool = False,
    causal: str | None = None,
    lacks: tuple[str, ...] = (),
    spans: str | None = None,
) -> dict[str, Head]:
    """Heads by the name of the reference class. bias: on the logits of the next token. causal: that class's name, where it
    is not {name}ForCausalLM. lacks: which of TOKENS and SPANS the reference does not have for this family. spans: the prefix
    of the base model's tensors in files of SPANS, None if it is that of the others.
    """
    heads = {TOKENS: LABELS, SPANS: replace(SPAN, prefix=spans)}
    return {
        causal or f"{name}ForCausalLM": BIASED_LM if bias else LM,
        f"{name}ForSequenceClassification": SCORED,
        **{f"{name}For{kind}": head for kind, head in heads.items() if kind not in lacks},
        # A bare base class saves its tensors without a prefix: that is the attribute
        # by which a class with a head holds it.
        f"{name}Model": Head(lambda c: {}, {"last_hidden_state": "hidden"}, prefix=""),
    }
