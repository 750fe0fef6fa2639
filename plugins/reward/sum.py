"""Several rewards as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from llmlab.errors import UserError
from llmlab.registry import declared, load, register
from llmlab.slots import Scored


@register("reward", "sum")
class WeightedSum:
    """The weighted sum of other rewards (of a rule and a format, as DeepSeek-R1: 2025, arXiv:2501.12948, section 2.2.2).

    of: the rewards, [exact,length]
    weights: of each; null: 1
    options: of each, [{},{most: 20}]
    """

    joins = "of"
    joins_options = "options"
    small: ClassVar[dict[str, Any]] = {"of": ("exact", "length")}
    telling: ClassVar[tuple[dict[str, Any], ...]] = (
        {"of": ("contains", "exact")},
        {"weights": (1.0, 0.5)},
        {"options": ({"field": "other"}, {"most": 2})},
        {"of": ("model", "exact"), "weights": (2.0, 1.0)},
    )

    def __init__(
        self,
        *,
        of: tuple[str, ...] = (),
        weights: tuple[float, ...] | None = None,
        options: tuple[dict[str, Any], ...] | None = None,
    ):
        if not of:
            raise ValueError("reward.of is empty; name the rewards, reward.of=[exact,length]")
        if "sum" in of:
            raise ValueError("reward.of: sum can't be one of its own parts; leave it out")
        for name, values in (("weights", weights), ("options", options)):
            if values is not None and len(values) != len(of):
                raise ValueError(f"reward.{name} has {len(values)} entries, but reward.of names {len(of)}")
        self.weights = np.array(weights or [1.0] * len(of), np.float64)
        if not np.isfinite(self.weights).all() or not self.weights.any():
            raise ValueError(f"reward.weights must be finite, and one of them not 0, but is {weights}")
        each = list(zip(of, options or [{}] * len(of), strict=True))
        for name, own in each:
            known = declared("reward", name, {}).options
            if other := [key for key in own if key not in known]:
                raise UserError(f"reward.options: {name} has no option {other[0]}; it has {', '.join(known) or 'none'}")
        self.of = tuple(of)
        self.parts = [load("reward", name, dict(own))() for name, own in each]
        judging = [declared("reward", name, own).attribute("models") for name, own in each]
        self.models = {role: about for models in judging for role, about in models.items()}
        self.roles = [tuple(models) for models in judging]
        self.needs = tuple(dict.fromkeys(field for part in self.parts for field in part.needs))

    def score(self, records: Sequence[Mapping[str, Any]], answers: Sequence[str], **judged: Any) -> Scored:
        """judged: the batch and the models of parts that work with models."""
        given = [{name: judged[name] for name in ("batch", *roles)} if roles else {} for roles in self.roles]
        pairs = zip(self.parts, given, strict=True)
        each = [part.score(records, answers, **more) for part, more in pairs]
        shown = {name: of for scores in each if isinstance(scores, Scored) for name, of in scores.shown.items()}
        return Scored((self.weights @ np.array(each, np.float64)).tolist() if len(answers) else [], shown)
