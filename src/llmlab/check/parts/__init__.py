"""The checks of a single part. The first paragraph of a check's docstring is its promise; it skips parts of other slots."""

from __future__ import annotations

from collections.abc import Callable

from llmlab.check.parts import (
    alone,
    computed,
    cut,
    kernel,
    modules,
    options,
    passes,
    position,
    recipe,
    reversal,
    router,
    rules,
    targets,
    traits,
)
from llmlab.check.subject import Subject
from llmlab.check.twins import definition

PART_CHECKS: dict[str, Callable[[Subject], None]] = {
    "definition": definition,
    "compiled": computed.compiled,
    "bfloat16": computed.bfloat16,
    "options": options.options,
    "kernel": kernel.matches_reference,
    "kernel_gradients": kernel.gradients,
    "kernel_dropout": kernel.dropout,
    "pairs": rules.pairs,
    "shift": position.shift,
    "recency": position.recency,
    "rows": position.rows,
    "tokens": modules.tokens,
    "experts": modules.experts,
    "first_norm": modules.first_norm,
    "wiring": modules.wiring,
    "chosen_rows": modules.chosen_rows,
    "vectors": modules.vectors,
    "ranks": router.ranks,
    "routing": router.routing,
    "first_values": recipe.first_values,
    "factors": alone.factors,
    "steps": alone.steps,
    "scores": alone.scores,
    "likelihood": recipe.likelihood,
    "reversal": reversal.reversal,
    "targets": targets.hidden,
    "passes": passes.passes,
    "cut": cut.cut,
    "traits": traits.traits,
}
# of a part that is in no model
ALONE_CHECKS = ("definition", "factors", "steps", "scores")
