"""Twin of the objective masked_diffusion, from its papers."""

from __future__ import annotations

from math import comb, log

import numpy as np

from llmlab.check.twins.observers.scored import BALANCE
from llmlab.twins import CHANCE, Given, twin
from twins import Settings
from twins.norm import bfloat16
from twins.objective.losses import Arrays, expected, log_softmax

REFUSED: Settings = {
    "masked_diffusion": [({}, {"least": 0.0}), ({}, {"least": 1.1}), ({}, {"least": 0.1, "counted": True})]
}


@twin(
    "objective",
    "masked_diffusion",
    source="Nie et al. 2025, equation 3, its rates from `least` on as its guidelines have them; counted: equation 6",
)
def masked_diffusion(given: Given) -> Arrays:
    draws, least = float(given.inputs["draws"]), given.options["least"]
    made: Arrays = {"shown": np.array(0.0), "fixed_counts": np.array(0.0)}
    # The midpoints of 4,000 parts of the rates' range, over which what is expected is averaged.
    rates = least + (1 - least) * (np.arange(4000) + 0.5) / 4000
    for name in ("plain", "answered", "only_special"):
        tokens = given.inputs[f"{name}/tokens"]
        may = [
            i
            for i in range(1, len(tokens))
            if tokens[i] != given.inputs["special/mask"]
            and not (name == "answered" and given.inputs["answered/given"][i])
        ]
        m = len(may)
        number = np.array([np.mean(comb(m, k) * rates**k * (1 - rates) ** max(m - k, 0)) for k in range(len(tokens))])
        places, mean_rate, uneven = np.isin(np.arange(1, len(tokens)), may), (1 + least) / 2, (1 - least) ** 2 / 12
        # Of k targets at the rate t, k / t has the mean m and the variance m (1 - t) / t.
        spread = m * (log(1 / least) / (1 - least) - 1) if least < 1 else 0.0
        if given.options["counted"]:  # every number is as likely, at the rate of just so many
            number = np.isin(np.arange(len(tokens)), range(1, m + 1)) / m
            mean_rate, uneven, spread = (m + 1) / (2 * m), (1 - 1 / m**2) / 12, 0.0
        made |= expected(f"targets/{name}", places * mean_rate, draws) | expected(f"number/{name}", number, draws)
        made |= expected(f"rate/{name}", mean_rate, draws, uneven) | expected(f"weighted/{name}", m, draws, spread)
        for key, varies in (("rate", uneven), ("weighted", spread)):
            if not varies:  # weights are of float32
                made[f"{key}/{name}{CHANCE}"] = np.array(1e-5)
        made[f"maskable/{name}"] = np.array(m)
        known = given.inputs.get(f"{name}/documents")
        made[f"documents/{name}"] = np.array(-1) if known is None else known[1:]
    for batch in ("batch", "none"):
        labels, scores = given.inputs[f"{batch}/labels"], given.inputs[f"{batch}/scores/tokens"]
        weight, n = given.inputs[f"{batch}/weight"], given.inputs[f"{batch}/maskable"].sum()
        total, half, slope = 0.0, 0.0, np.zeros_like(scores)
        for b, t in np.argwhere(labels >= 0):
            log_p = log_softmax(scores[b, t])
            total -= weight[b] * log_p[labels[b, t]]
            half -= weight[b] * log_softmax(bfloat16(scores[b, t]))[labels[b, t]]
            slope[b, t] = weight[b] * np.exp(log_p) / n
            slope[b, t, labels[b, t]] -= weight[b] / n
        made[f"{batch}/loss/nll"] = np.array([total, n])
        made[f"{batch}/mean"] = np.array(total / n + BALANCE)
        made[f"{batch}/slope/tokens"] = slope
        if batch == "batch":
            made["half/mean"] = np.array(half / n + BALANCE)
    return made
