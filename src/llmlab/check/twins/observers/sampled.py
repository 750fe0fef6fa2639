"""Statistics of masked samples whose masks a companion fills in with tokens that it draws."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from llmlab.check.twins.observers import texts
from llmlab.slots import Objective


def sampled(objective: Objective, name: str, text: texts.Text, special: Mapping[str, int]) -> texts.Arrays:
    """Outputs of `texts.masked`, and: `n_targets/TERM/`, a sample's targets on average; `passes/`, of the first sample by model
    (1: the trained one) tokens, trained, and rows of its head (-1: all); `chance/` how many chances fall into each tenth of
    [0, 1), a token; `judged/`, where the sample has it, of each place.
    """
    found = texts.draws(objective, text)
    counts = [objective.targets(f) for f in found]
    outputs = texts.masked(objective, name, text, special)
    outputs |= {f"n_targets/{term}/{name}": np.array(np.mean([c[term] for c in counts])) for term in counts[0]}
    costs = [
        [p.model == "model", p.tokens, p.trained, *(-1 if n is None else n for n in p.heads.values())]
        for p in objective.passes(found[0])  # type: ignore[attr-defined]
    ]
    outputs[f"passes/{name}"] = np.array(costs, np.float64)
    chances = np.stack([f["chance"] for f in found])
    outputs[f"chance/{name}"] = np.bincount((chances * 10).astype(int).flat, minlength=10) / chances.size
    if "judged" in found[0]:
        outputs[f"judged/{name}"] = np.mean([f["judged"] for f in found], 0)
    return outputs
