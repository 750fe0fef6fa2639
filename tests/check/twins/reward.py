"""Twins of rewards, from their papers, one answer at a time."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from llmlab.check.twins.observers.reward import N_RECORDS
from llmlab.twins import Given, twin


def outputs(given: Given, right: Callable[[str, str], object]) -> dict[str, np.ndarray]:
    """Outputs of a rule: a score is 1.0 where right(answer, the text that it must have)."""
    own = given.inputs[given.options["field"]]
    typed = given.options.get("text")
    pairs = zip(given.inputs["answers"], own, strict=True)
    scores = [
        1.0 if right(str(a), re.sub(r"^\s+|\s+$", "", str(t)) if typed is None else typed) else 0.0 for a, t in pairs
    ]
    needs = [float(typed is None and key == given.options["field"]) for key in ("answer", "other")]
    return {"needs": np.array(needs), **{f"scores/{i}": np.array(scores[i::N_RECORDS]) for i in range(N_RECORDS)}}


@twin("reward", "exact", source="Rajpurkar et al. 2016, section 5 (exact match), up to white space around")
def exact(given: Given) -> dict[str, np.ndarray]:
    return outputs(given, lambda answer, text: re.fullmatch(rf"\s*{re.escape(text)}\s*", answer))


@twin("reward", "contains", source="Lambert et al. 2024, section 6: a verifiable reward")
def contains(given: Given) -> dict[str, np.ndarray]:
    return outputs(given, lambda answer, text: re.search(re.escape(text), answer))


@twin("reward", "ends_with", source="Lambert et al. 2024, section 6: a verifiable reward")
def ends_with(given: Given) -> dict[str, np.ndarray]:
    return outputs(given, lambda answer, text: re.search(re.escape(re.sub(r"\s+$", "", text)) + r"\s*\Z", answer))
