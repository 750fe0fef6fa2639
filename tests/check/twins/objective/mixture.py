"""Twin of mixtures: the losses of those of which a batch has rows, by their shares."""

from __future__ import annotations

import numpy as np

from llmlab.check.restoring.batches import SIZE
from llmlab.check.twins.observers.scored import BALANCE
from llmlab.twins import Given, twin
from twins import Settings
from twins.norm import bfloat16
from twins.objective.losses import Arrays, log_softmax

REFUSED: Settings = {
    "mix": [
        ({}, {"weights": [1.0]}),
        ({}, {"weights": [1.0, 0.0]}),
        ({}, {"options": [{}]}),
        ({}, {"names": ["one"]}),
        ({}, {"of": ["clm", "classification"]}),
        ({}, {"of": ["clm", "mix"]}),
        ({}, {"of": []}),
    ]
}


@twin("objective", "mix", source="Tay et al. 2022, section 3.1; a mean for each objective, weighted by its share")
def mix(given: Given) -> Arrays:
    o = given.options
    shares = np.array(o["weights"] or [1.0, 1.0])
    shares = shares / shares.sum()
    names = o["names"] or o["of"]
    special = [int(v) for key, v in given.inputs.items() if key.startswith("special/")]
    by_chance = 0.1 / len([i for i in range(SIZE) if i not in special])
    # The most of any of them: of BERT's targets one in ten stays; BART's labels are all of a text of which it masks 30 %.
    shown = max({"clm": 0.0, "mlm": 0.1 + by_chance, "denoise": 0.7}[name] for name in o["of"])
    made: Arrays = {"fixed_counts": np.array(0.0), "shown": np.array(shown)}
    labels, scores, which = (given.inputs[f"batch/{key}"] for key in ("labels", "scores/tokens", "which"))
    # A text of which all is seen is all prefix; one that is read from left to right has none.
    made["prefix_len"] = np.array([labels.shape[1] * (o["of"][i] == "mlm") for i in which])
    slope, mean, half = np.zeros_like(scores), BALANCE, BALANCE
    every = list(zip(*np.nonzero(labels != -100), strict=True))
    for name in dict.fromkeys(names):
        own = [i for i, other in enumerate(names) if other == name]  # those of one name together
        targets = [at for at in every if which[at[0]] in own]
        n, share = max(len(targets), 1), shares[own].sum()
        logs = [log_softmax(scores[at])[labels[at]] for at in targets]
        made[f"batch/loss/{name}"] = np.array([-sum(logs), len(targets)], np.float64)
        made[f"batch/weight/{name}"] = share
        mean -= share * sum(logs) / n
        half -= share * sum(log_softmax(bfloat16(scores[at]))[labels[at]] for at in targets) / n
        for at in targets:
            slope[at] = np.exp(log_softmax(scores[at])) - np.eye(scores.shape[-1])[labels[at]]
            slope[at] *= share / n
    for i, name in enumerate(names):
        targets = [at for at in every if which[at[0]] == i]
        if o["of"][i] == "mlm":
            right = sum(int(scores[at].argmax() == labels[at]) for at in targets)
            made[f"batch/log/{name}_accuracy"] = np.array([right, len(targets)], np.float64)
        z_loss = (o["options"] or ({}, {}))[i].get("z_loss", 0.0)
        if (
            z_loss
        ):  # log^2 Z of each target, a term of its own with its own weight (PaLM: Chowdhery et al. 2022, section 5)
            n, weight = max(len(targets), 1), shares[i] * z_loss
            log_z = [np.log(np.exp(scores[at]).sum()) for at in targets]
            made[f"batch/loss/{name}_z"] = np.array([sum(z**2 for z in log_z), len(targets)])
            made[f"batch/weight/{name}_z"] = weight
            mean += weight * sum(z**2 for z in log_z) / n
            half += weight * sum(np.log(np.exp(bfloat16(scores[at])).sum()) ** 2 for at in targets) / n
            for at, z in zip(targets, log_z, strict=True):
                slope[at] += weight * 2 * z * np.exp(log_softmax(scores[at])) / n
    made |= {"batch/mean": np.array(mean), "batch/slope/tokens": slope, "half/mean": np.array(half)}
    return made
