"""The checks of every model. The first paragraph of a check's docstring is the promise that the report prints."""

from __future__ import annotations

from collections.abc import Callable

from llmlab.check import attention_reference, equivalences, gradcheck, learning, reference, visibility, weights, writing
from llmlab.check.subject import Subject

MODEL_CHECKS: dict[str, Callable[[Subject], None]] = {
    "causality": visibility.causality,
    "visibility": visibility.visibility,
    "attention": attention_reference.attention,
    "cache": equivalences.cache,
    "generation": writing.generation,
    "memory": equivalences.memory,
    "padding": equivalences.padding,
    "batch": equivalences.batching,
    "documents": equivalences.documents,
    "first_loss": learning.first_loss,
    "gradients": learning.gradients,
    "slope": gradcheck.slope,
    "balance": learning.balance,
    "evaluation": learning.evaluation,
    "checkpointing": learning.checkpointing,
    "drawn": weights.drawn,
    "tied": weights.tied,
    "saved": weights.saved,
    "reference": reference.reference,
}
