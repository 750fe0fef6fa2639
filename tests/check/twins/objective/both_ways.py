"""Twin of ELMo's bidirectional language model, from the paper."""

from __future__ import annotations

import numpy as np

from llmlab.check.twins.observers.scored import BALANCE
from llmlab.twins import Given, twin
from twins.norm import bfloat16
from twins.objective.losses import Arrays, log_softmax


def loss(given: Given, batch: str, half: bool = False) -> Arrays:
    """Terms, their mean and its slope: log p(t_k | t_1 ... t_k-1) from the left, log p(t_k | t_k+1 ... t_N) from the right."""
    scores = given.inputs[f"{batch}/scores/neighbours"]
    scores = bfloat16(scores) if half else scores
    made: Arrays = {f"{batch}/slope/neighbours": np.zeros_like(scores), f"{batch}/mean": np.array(BALANCE)}
    for direction, (term, key) in enumerate((("forward", "labels"), ("backward", "previous"))):
        labels = given.inputs[f"{batch}/{key}"]
        places = [tuple(at) for at in np.argwhere(labels >= 0)]
        total = 0.0
        for at in places:
            log_p = log_softmax(scores[at][direction])
            total -= log_p[labels[at]]
            back = np.exp(log_p)
            back[labels[at]] -= 1
            made[f"{batch}/slope/neighbours"][at][direction] = back / len(places) / 2
        made[f"{batch}/loss/{term}"] = np.array([total, len(places)])
        made[f"{batch}/weight/{term}"] = np.array(0.5)
        made[f"{batch}/mean"] = made[f"{batch}/mean"] + total / max(len(places), 1) / 2
    return made


@twin("objective", "elmo", source="Peters et al. 2018, section 3.1, as the mean of the two directions")
def elmo(given: Given) -> Arrays:
    made: Arrays = {
        "shown": np.array(0.0),
        "fixed_counts": np.array(1.0),
        **loss(given, "batch"),
        **loss(given, "none"),
    }
    made["half/mean"] = loss(given, "batch", half=True)["batch/mean"]
    for name in ("plain", "answered", "only_special"):
        tokens = given.inputs[f"{name}/tokens"].tolist()
        silent = given.inputs["answered/given"].tolist() if name == "answered" else [False] * len(tokens)
        target = [-100 if quiet else token for token, quiet in zip(tokens, silent, strict=True)]
        n = len(tokens) - 1
        made[f"prepared/ids/{name}"] = np.array([tokens[k] for k in range(n)])
        made[f"prepared/labels/{name}"] = labels = np.array([target[k + 1] for k in range(n)])
        made[f"prepared/previous/{name}"] = previous = np.array([target[k - 1] if k else -100 for k in range(n)])
        if name != "only_special":
            made[f"prepared/documents/{name}"] = given.inputs[f"{name}/documents"][:n]
        made[f"n_targets/forward/{name}"] = np.array((labels >= 0).sum())
        made[f"n_targets/backward/{name}"] = np.array((previous >= 0).sum())
    return made
