"""The twin of proximal policy optimization with a critic, from its papers, token by token."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmlab.twins import Given, twin
from twins.alignment.acting import answers_prepared, estimate, log_p, measured, ratio_logs, rollout, validated
from twins.alignment.shared import Arrays, Terms, Vectors, learnt, logged, read, said

OF_ANSWERS = ("reward", "truncated", "kl", "coefficient", "explained_variance")


def credited(given: Given, beta: float, first: int | None) -> Arrays:
    o, of = given.options, rollout(given, first)
    shape = of["log_probabilities"].shape
    advantage, values = np.zeros(shape), np.zeros(shape)
    there = np.zeros(shape, bool)
    for i, n in enumerate(of["lengths"]):
        there[i, :n] = True
        values[i, :n] = of["measured/value"][i, :n]
        rewards = [
            -beta * estimate(of["log_probabilities"][i, t] - of["measured/reference"][i, t], o["estimator"])
            for t in range(n)
        ]
        rewards[-1] += of["rewards"][i] - (o["no_end"] if of["truncated"][i] else 0.0)
        deltas = [rewards[t] + o["gamma"] * (values[i, t + 1] if t + 1 < n else 0.0) - values[i, t] for t in range(n)]
        for t in range(n):  # equation 16, as its sum
            advantage[i, t] = sum((o["gamma"] * o["lam"]) ** (k - t) * deltas[k] for k in range(t, n))
    returns = advantage + values
    explained = 1 - (returns - values)[there].var() / returns[there].var()
    if o["whiten"]:
        own = advantage[there]
        advantage = np.where(there, (advantage - own.mean()) / own.std(), 0.0)
    whole = np.ones(shape[0])
    return {
        "advantage": advantage,
        "value": values,
        "return": returns,
        "kl": of["measured/kl"],
        "coefficient": beta * whole,
        "explained_variance": explained * whole,
    }


@twin(
    "alignment",
    "ppo",
    source="Schulman et al. 2017, arXiv:1707.06347, equation 7; arXiv:1506.02438, equation 16; Ziegler et al. 2019, "
    "arXiv:1909.08593, section 2.2, whose code (lm-human-preferences) whitens by the tokens' own variance and clips values",
)
def ppo(given: Given) -> Arrays:
    o, batch = given.options, {k.removeprefix("batch/"): v for k, v in given.inputs.items() if k.startswith("batch/")}
    shared = o["critic"] == "shared"
    head = "value" if shared else "critic.value"
    labels = batch["labels"]
    then, advantage, old, returns = (
        batch[key][labels != -100] for key in ("log_probabilities", "advantage", "value", "return")
    )

    def both(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        near = values if o["value_clip"] is None else np.clip(values, old - o["value_clip"], old + o["value_clip"])
        return (values - returns) ** 2, (near - returns) ** 2

    def terms(of: Vectors, fixed: Vectors) -> Terms:
        ratio = np.exp(of["tokens"] - then)
        each = -np.minimum(ratio * advantage, np.clip(ratio, 1 - o["clip"], 1 + o["clip"]) * advantage)
        return {"policy": (each.sum(), len(each)), "value": (np.maximum(*both(of[head])).sum() / 2, len(each))}

    ours = log_p(given, "batch", "tokens")
    ratio = np.exp(said(ours, labels) - then)
    clipped = np.clip(ratio, 1 - o["clip"], 1 + o["clip"]) * advantage < ratio * advantage
    free, held = both(batch[f"scores/{head}"][labels != -100])
    n_answers = len(labels)
    logs = {
        **{name: (batch[name].sum(), n_answers) for name in (*OF_ANSWERS, "answer_length")},
        **ratio_logs(ours, clipped),
        "value_clip_fraction": ((held > free).sum(), len(free)),
    }
    made = learnt(
        given, labels, terms, {"value": o["value_weight"]}, 1 if shared else 2, o["temperature"], ("tokens", head)
    )
    made |= logged(logs) | validated(given) | read(given, batch["ids"], "model", *(() if shared else ("critic",)))
    for name, first in (("credit", None), ("one", o["samples"])):
        made |= {f"{name}/{key}": value for key, value in credited(given, o["beta"], first).items()}
    kept, beta = {}, o["beta"]
    if o["target"] is not None:
        error = np.clip(given.inputs["rollout/measured/kl"].mean() / o["target"] - 1, -0.2, 0.2)
        beta *= 1 + 0.1 * error
        kept["state/coefficient"] = np.array(beta)
    kept["again/advantage"] = credited(given, beta, None)["advantage"]
    there = given.inputs["measured/labels"] != -100
    values = given.inputs[f"measured/scores/{head}"]
    made |= {**kept, **measured(given), "measured/value": np.where(there, values, 0.0)}
    return {**made, **all_prepared(given)}


def all_prepared(given: Given) -> Arrays:
    once = 1 / given.options["epochs"]
    if given.options["critic"] == "shared":
        passes = [("model", True, 1.0, 2), ("model", False, once, 2)]
    else:
        passes = [
            (model, trained, times, 1)
            for trained, times in ((True, 1.0), (False, once))
            for model in ("model", "critic")
        ]
    passes.append(("reference", False, once, 1))
    of_tokens = ("value", "return", "advantage")
    terms = {name: lambda record, n: n for name in ("policy", "value")}
    return answers_prepared(given, OF_ANSWERS, of_tokens, terms, passes)


REFUSED: dict[str, list[Any]] = {
    "ppo": [
        *(({}, {key: -0.1}) for key in ("beta", "gamma", "lam", "clip", "value_clip", "value_weight", "no_end")),
        *(({}, {key: 1.1}) for key in ("gamma", "lam", "clip")),
        ({}, {"target": 0.0}),
        ({}, {"target": 1.0, "beta": 0.0}),
    ],
}
MORE: dict[str, list[Any]] = {
    "ppo": [({}, {"value_clip": None}), ({}, {"target": 4.0, "samples": 2}), ({}, {"target": 1.3})]
}
