"""Twins of routers, from their papers, and a mixture of experts that sends one token to one expert at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from llmlab.twins import CHANCE, Given, twin
from twins import Settings
from twins.roles import roles

TRAITS = (
    {"moe.renormalise": False},
    {"moe.per_token": 1},
    {"moe.balance": 0.0},
    {"moe.z": 0.01},
    {"moe.balance": 0.0, "moe.z": 0.02},
    {"moe.balance": 0.5, "moe.n_experts": 8, "moe.per_token": 2},
    {"moe.scale": 2.0, "moe.n_shared": 2},
    {"moe.shared_dim": 28, "moe.n_shared": 1, "moe.shared_gate": True},
    {"moe.shared_gate": True},
    {"ffn.bias": True, "moe.n_shared": 1},
    {"ffn.bias": True, "ffn.dropout": 1.0},
)
WIDTHS = ({"moe.scale": 0.0}, {"moe.ffn_dim": 18})  # 18: rows whose bytes are no multiple of 16
GROUPS = (
    ({"moe.per_token": 2}, {"groups": 3}),
    ({}, {"groups": 6, "groups_kept": 3}),
    ({}, {"groups": 3, "groups_kept": 3}),
    ({"moe.n_experts": 8}, {"groups": 2}),
)
NO_GROUPS = (
    ({}, {"groups": 3, "groups_kept": 1}),  # fewer experts than a token visits
    ({}, {"groups": 4, "groups_kept": 4}),
    ({}, {"groups": 0, "groups_kept": 0}),
    ({}, {"groups": -2, "groups_kept": -2}),
    ({}, {"groups": 3, "groups_kept": 4}),
    ({}, {"groups": 3, "groups_kept": 0}),
)
MORE: Settings = {
    "topk": [*((sizes, {}) for sizes in (*TRAITS, *WIDTHS)), *GROUPS],
    "sigmoid": [*((sizes, {}) for sizes in TRAITS), *GROUPS],
    "expert_choice": [
        *((sizes, {}) for sizes in TRAITS),
        ({"sees_all": False}, {"leak_future": True}),
        *(({}, {"capacity": capacity}) for capacity in (0.1, 6.0)),
    ],
}
REFUSED: Settings = {
    "topk": NO_GROUPS,
    "sigmoid": NO_GROUPS,
    "expert_choice": [
        ({"sees_all": False}, {"leak_future": False}),
        *(({}, {"capacity": capacity}) for capacity in (-1.0, 0.0, 6.1)),
    ],
}
STEP = 1e-5  # of weights: no token changes its expert
NOT_SENT = -1.0
Weights = dict[tuple[int, int], float]  # {(token, expert): weight}


# ---------------------------------------------------------------- which experts


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return e / e.sum()


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def best(values: Sequence[float], n: int) -> list[int]:
    return sorted(range(len(values)), key=lambda i: -values[i])[:n]


def in_groups(scores: np.ndarray, groups: int, kept: int, of_group: int) -> list[float]:
    """Scores, -inf where the expert's group is not among the `kept` of the highest sum of their `of_group` best scores."""
    size = len(scores) // groups
    sums = [sum(sorted(scores[g * size : (g + 1) * size])[::-1][:of_group]) for g in range(groups)]
    return [s if e // size in best(sums, kept) else -math.inf for e, s in enumerate(scores)]


def topk_weights(given: Given, x: np.ndarray, valid: np.ndarray) -> Weights:
    moe, weights = given.sizes.moe, {}
    for t in range(len(x)):
        p = softmax(given.weights["router.gate.weight"] @ x[t])
        chosen = best(in_groups(p, given.options["groups"], given.options["groups_kept"], 1), moe.per_token)
        total = sum(p[e] for e in chosen) if moe.renormalise else 1.0
        weights.update({(t, e): p[e] / total for e in chosen})
    return weights


def sigmoid_weights(given: Given, x: np.ndarray, valid: np.ndarray) -> Weights:
    moe, weights = given.sizes.moe, {}
    for t in range(len(x)):
        s = sigmoid(given.weights["router.gate.weight"] @ x[t])
        biased = s + given.weights["router.bias"]
        chosen = best(in_groups(biased, given.options["groups"], given.options["groups_kept"], 2), moe.per_token)
        total = sum(s[e] for e in chosen) + 1e-20 if moe.renormalise else 1.0
        weights.update({(t, e): s[e] / total for e in chosen})
    return weights


def expert_choice_weights(given: Given, x: np.ndarray, valid: np.ndarray) -> Weights:
    p = {t: softmax(given.weights["router.gate.weight"] @ x[t]) for t in range(len(x)) if valid[t]}
    takes = math.ceil(len(p) * capacity(given) / given.sizes.moe.n_experts)
    weights: Weights = {}
    for e in range(given.sizes.moe.n_experts):
        for t in sorted(p, key=lambda t: -p[t][e])[:takes]:
            weights[t, e] = p[t][e]
    return weights


def capacity(given: Given) -> float:
    of_part = given.options["capacity"]
    return given.sizes.moe.per_token if of_part is None else of_part


# ---------------------------------------------------------------- losses


def balance_loss(p: np.ndarray, weights: Weights, tokens: Sequence[int]) -> float:
    """E sum_e f_e P_e (Switch Transformer, equations 4 to 6), f the share of an expert of all visits."""
    n_experts = p.shape[1]
    visited = [e for t, e in weights if t in tokens]
    f = [visited.count(e) / max(len(visited), 1) for e in range(n_experts)]
    mean = [sum(p[t, e] for t in tokens) / max(len(tokens), 1) for e in range(n_experts)]
    return n_experts * sum(a * b for a, b in zip(f, mean, strict=True))


def z_loss(z: np.ndarray, tokens: Sequence[int]) -> float:
    """The mean of (log sum exp z)^2 (ST-MoE, equation 5)."""
    return sum(math.log(sum(math.exp(v) for v in z[t])) ** 2 for t in tokens) / max(len(tokens), 1)


def loss(
    given: Given, x: np.ndarray, valid: np.ndarray, weights: Weights, p: np.ndarray | None, z: bool
) -> float | None:
    """The balance loss and the z-loss, each times its coefficient; None without either. p: the probabilities that are balanced,
    None where none are. z: True where the router has a z-loss."""
    moe, tokens = given.sizes.moe, [t for t in range(len(x)) if valid[t]]
    terms = []
    if p is not None and moe.balance:
        terms.append(moe.balance * balance_loss(p, weights, tokens))
    if z and moe.z:
        terms.append(moe.z * z_loss(x @ given.weights["router.gate.weight"].T, tokens))
    return sum(terms) if terms else None


def topk_loss(given: Given, x: np.ndarray, valid: np.ndarray, weights: Weights) -> float | None:
    p = np.array([softmax(z) for z in x @ given.weights["router.gate.weight"].T])
    return loss(given, x, valid, weights, p, True)


def sigmoid_loss(given: Given, x: np.ndarray, valid: np.ndarray, weights: Weights) -> float | None:
    """DeepSeek-V3, equations 17 to 20: the balance loss of scores divided by their sum."""
    s = sigmoid(x @ given.weights["router.gate.weight"].T)
    # The constant is in no equation; it matters where all scores are close to 0.
    return loss(given, x, valid, weights, s / (s.sum(1, keepdims=True) + 1e-20), False)


def expert_choice_loss(given: Given, x: np.ndarray, valid: np.ndarray, weights: Weights) -> float | None:
    return loss(given, x, valid, weights, None, True)


# ---------------------------------------------------------------- the mixture


def ffn(given: Given, path: str, x: np.ndarray, expert: int | None = None, dropped: bool = False) -> np.ndarray:
    """down(tanh(up(x))), of an expert where there are several. dropped: what comes to `down` is 0."""

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        weight, bias = given.weights[f"{path}.{name}.weight"], given.weights.get(f"{path}.{name}.bias")
        y = x @ (weight if expert is None else weight[expert]).T
        return y if bias is None else y + (bias if expert is None else bias[expert])

    inner = np.tanh(linear("up", x))
    return linear("down", 0 * inner if dropped else inner)


def mixture(given: Given, x: np.ndarray, weights: Weights, dropped: bool = False) -> np.ndarray:
    """scale * sum_e w_e FFN_e(x) + sigmoid(g x) FFN_shared(x), token by token."""
    moe, rows = given.sizes.moe, []
    shared = bool(moe.n_shared or moe.shared_dim)
    for t in range(len(x)):
        y = np.zeros(x.shape[1])
        for e in range(moe.n_experts):
            if (t, e) in weights:
                y = y + moe.scale * weights[t, e] * ffn(given, "experts", x[t], e, dropped)
        if shared:
            gate = sigmoid(given.weights["shared_gate.weight"] @ x[t]) if moe.shared_gate else 1.0
            y = y + gate * ffn(given, "shared", x[t], None, dropped)
        rows.append(y)
    return np.array(rows)


def last_three(y: np.ndarray) -> np.ndarray:
    """(n, D) -> (2, n / 2, 3): rows as the mixture is given them, and the last values of each token."""
    return y[:, -3:].reshape(2, -1, 3)


def role(path: str) -> str:
    return "ffn_in" if "up" in path else "ffn_out" if "down" in path else "router"


def load(weights: Weights, valid: np.ndarray, n_experts: int) -> np.ndarray:
    """Valid tokens that come to each expert."""
    return np.array([sum(valid[t] and expert == e for t, expert in weights) for e in range(n_experts)], float)


def logarithm(weights: np.ndarray) -> np.ndarray:
    """log10(w + 1e-9), 1 where the token does not go."""
    return np.where(weights < 0, 1.0, np.log10(np.maximum(weights, 0) + 1e-9))


def outputs(
    given: Given,
    choose: Callable[[Given, np.ndarray, np.ndarray], Weights],
    auxiliary: Callable[[Given, np.ndarray, np.ndarray, Weights], float | None],
) -> dict[str, np.ndarray]:
    moe, x, valid = given.sizes.moe, given.inputs["x"], given.inputs["valid"]
    every = np.ones(len(x), bool)

    def table(weights: Weights, n: int) -> np.ndarray:
        return np.array([[weights.get((t, e), NOT_SENT) for e in range(moe.n_experts)] for t in range(n)])

    all_weights, padded = choose(given, x, every), choose(given, x, valid)
    far, both = given.inputs["far"], np.ones(2, bool)
    far_visits = choose(given, far, both)
    far_padded = choose(given, far, np.array([False, True]))
    far_loss = auxiliary(given, far, both, far_visits)
    found = {
        "weights": table(all_weights, len(x)),
        "padded": table(padded, len(x) // 2),
        "autocast": table(all_weights, len(x))[:2],
        "far": logarithm(table(far_visits, 2)),
        "far_padded": logarithm(table(far_padded, 2)),
        "y": last_three(mixture(given, x, padded)),
        "float32": mixture(given, x, padded)[-1],
        "bfloat16": np.array(1.0),
        "load": load(padded, valid, moe.n_experts),
        "unpadded_load": load(all_weights, every, moe.n_experts),
        "dropouts": np.array([0.0, given.sizes.ffn.dropout]),
        "roles": roles([path for path in given.weights if path != "router.bias"], role),  # which is a buffer
    }
    if given.sizes.ffn.dropout == 1.0:
        found["training"] = last_three(mixture(given, x, padded, dropped=True))
    for key, kept in {
        "loss": every,
        "padded_loss": valid,
        "alone_loss": given.inputs["alone"],
        "none_loss": given.inputs["none"],
    }.items():
        value = auxiliary(given, x, kept, choose(given, x, kept))
        if value is not None:
            found[key] = np.array(value)
    rises = [_rising(given, choose, auxiliary, step) for step in (STEP, -STEP)]
    found["slopes"] = (rises[0] - rises[1]) / (2 * STEP)
    found["slopes" + CHANCE] = 1e-6 + 1e-4 * np.abs(found["slopes"])  # by float32, and by the step
    if far_loss is not None:
        found["far_loss"] = np.log10(np.array(far_loss))
    both = np.concatenate([x, given.inputs["other"]])
    both_valid = np.concatenate([valid, given.inputs["other_valid"]])
    value = auxiliary(given, both, both_valid, choose(given, both, both_valid))
    if value is not None:
        found["ranks_loss"] = np.array(value)
    return found


def _rising(given: Given, choose: Callable, auxiliary: Callable, step: float) -> np.ndarray:
    """The sum of y, and the loss, where the router's weights are so far along `towards`."""
    gate = given.weights["router.gate.weight"] + step * given.inputs["towards"]
    moved = replace(given, weights={**given.weights, "router.gate.weight": gate})
    x, valid = given.inputs["x"], given.inputs["valid"]
    weights = choose(moved, x, valid)
    loss = auxiliary(moved, x, valid, weights)
    return np.array([mixture(moved, x, weights)[:, -3:].sum(), *([] if loss is None else [loss])])


@twin(
    "moe",
    "topk",
    source="Shazeer et al. 2017, equations 3 to 5, softmax first as in Mixtral; groups by their best expert: DeepSeek-V2, "
    "section 2.2.2; balance: Switch Transformer, equations 4 to 6; z-loss: ST-MoE, equation 5",
)
def topk(given: Given) -> dict[str, np.ndarray]:
    n, moe = len(given.inputs["x"]), given.sizes.moe
    return {
        **outputs(given, topk_weights, topk_loss),
        "leaks": np.array(0.0),
        "per_token": np.array(moe.per_token),
        "flops": np.array(2 * n * moe.n_experts * given.sizes.dim),
    }


@twin(
    "moe",
    "sigmoid",
    source="DeepSeek-V3 (arXiv:2412.19437), equations 12 to 20; groups by their two best as in its inference/model.py, the "
    "1e-20 as in transformers' DeepseekV3; the bias's change: Wang et al. 2024 (arXiv:2408.15664), algorithm 1",
)
def sigmoid_router(given: Given) -> dict[str, np.ndarray]:
    n, moe, load = len(given.inputs["x"]), given.sizes.moe, given.inputs["load"]
    # b_i + u sign(e_i), e_i the mean load less the load of expert i.
    moved = [given.options["rate"] * float(np.sign(load.sum() / len(load) - c)) for c in load]
    return {
        **outputs(given, sigmoid_weights, sigmoid_loss),
        "leaks": np.array(0.0),
        "per_token": np.array(moe.per_token),
        "flops": np.array(2 * n * moe.n_experts * given.sizes.dim),
        "moved.bias": np.array(moved),
    }


@twin(
    "moe", "expert_choice", source="Zhou et al. 2022 (arXiv:2202.09368), equations 1 and 2; z-loss: ST-MoE, equation 5"
)
def expert_choice(given: Given) -> dict[str, np.ndarray]:
    return {
        **outputs(given, expert_choice_weights, expert_choice_loss),
        "leaks": np.array(float(given.options["leak_future"])),
        "per_token": np.array(capacity(given)),
    }


@twin("moe", "none", source="no experts, by its own words")
def none(given: Given) -> dict[str, np.ndarray]:
    return {"dense": np.ones(1)}
