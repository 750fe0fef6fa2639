"""Twins of objectives, from their papers. Each module may have tables MORE and REFUSED of the objectives in it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from llmlab.twins import Compute, Given, twin, twin_of
from twins import Settings

MODULES: list[ModuleType] = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
MORE: Settings = {name: found for m in MODULES for name, found in getattr(m, "MORE", {}).items()}
REFUSED: Settings = {name: found for m in MODULES for name, found in getattr(m, "REFUSED", {}).items()}
# The shortest window of which something is left to predict, with all that an objective adds to it; 1 of the others.
SHORTEST: dict[str, Callable[[Mapping[str, Any]], int]] = {
    "blank_infilling": lambda o: 4,  # the mask, start, a token of the span, and one of the text
    "denoise": lambda o: 2,  # a token and eos
    "gap_sentences": lambda o: 2,  # a token and eos
    "mix": lambda o: 4 if o["prefix"] else 1,  # denoise's two, before what the decoder reads, which is as long
    "mlm": lambda o: 1 if o["pair"] == "none" else 5,  # cls, a token, sep, a token, sep
    "mtp": lambda o: o["depth"] + 1,  # the last module predicts the token behind these
    "plm": lambda o: o["memory"] + 1,
    "qa_span": lambda o: o["stride"] + 1 if o["stride"] else 1,  # windows that overlap
    "span_corruption": lambda o: 2,  # a token that is kept and one that is taken
    "span_mlm": lambda o: 3,  # cls, a token, sep
}


def _with_shortest(compute: Compute, shortest: Callable[[Mapping[str, Any]], int]) -> Compute:
    def computed(given: Given) -> Mapping[str, np.ndarray]:
        n = shortest(given.options)
        return {**compute(given), **({"shortest": np.array(n)} if n > 1 else {})}

    return computed


for name, shortest in SHORTEST.items():
    if own := twin_of("objective", name):
        twin("objective", name, source=own.source)(_with_shortest(own.compute, shortest))
