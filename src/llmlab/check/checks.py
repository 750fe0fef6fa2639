"""What is asked of every model. Each check's first line says what holds."""

from __future__ import annotations

from collections.abc import Callable

from llmlab.check import learning, reach, reference, slope, texts, weights, written
from llmlab.check.subject import Subject

MODEL_CHECKS: dict[str, Callable[[Subject], None]] = {
    "causality": reach.causality,
    "visibility": reach.visibility,
    "attention": written.attention,
    "cache": texts.cache,
    "generation": texts.generation,
    "memory": texts.memory,
    "padding": texts.padding,
    "batch": texts.batching,
    "documents": texts.documents,
    "first_loss": learning.first_loss,
    "gradients": learning.gradients,
    "slope": slope.slope,
    "balance": learning.balance,
    "evaluation": learning.evaluation,
    "checkpointing": learning.checkpointing,
    "drawn": weights.drawn,
    "tied": weights.tied,
    "saved": weights.saved,
    "reference": reference.reference,
}
