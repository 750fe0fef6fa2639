"""Twins of objectives, from their papers: means over many draws, with bounds of five standard deviations, and losses."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np

from llmlab.check.twins.observers.objective import BALANCE, SIZE
from llmlab.twins import CHANCE, Given, twin
from twins import Settings
from twins.norm import bfloat16

REFUSED: Settings = {
    "mlm": [
        ({}, {"rate": 0.0}),
        ({}, {"rate": 1.1}),
        ({}, {"masked": -0.1}),
        ({}, {"random": -0.1}),
        ({}, {"masked": 0.9, "random": 0.2}),
    ],
    "span_corruption": [({}, {"density": 0.0}), ({}, {"density": 1.0}), ({}, {"mean_span": 0.9})],
    "reinforce": [
        *(({}, {key: 0}) for key in ("samples", "max_new", "batches", "epochs")),
        ({}, {"temperature": 0.0}),
    ],
}
Arrays = dict[str, np.ndarray]


def expected(name: str, mean: np.ndarray | float, n: float, most: np.ndarray | float | None = None) -> Arrays:
    """A mean of n draws, with its bound. most: the variance of a draw, p (1 - p) if None. Without variance it is exact."""
    mean = np.asarray(mean, np.float64)
    variance = mean * (1 - mean) if most is None else np.asarray(most)
    bound = np.where(variance > 1e-12, 5 * np.sqrt(np.maximum(variance, 0) / n) + 5 / n, 1e-9)
    return {name: mean, name + CHANCE: bound}


# ---------------------------------------------------------------- losses


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def cross_entropy(given: Given, role: str, accuracy: bool) -> Arrays:
    """-log p of each label, summed; its mean's gradient is (p - 1 at the label) / number of labels."""
    made: Arrays = {}
    for batch in (b for b in ("batch", "none") if f"{b}/labels" in given.inputs):
        labels, scores = given.inputs[f"{batch}/labels"], given.inputs[f"{batch}/scores/{role}"]
        slope, nll, count, right = np.zeros_like(scores), 0.0, 0, 0
        for at in np.ndindex(labels.shape):
            if labels[at] == -100:
                continue
            log_p = log_softmax(scores[at])
            nll, count, right = nll - log_p[labels[at]], count + 1, right + (scores[at].argmax() == labels[at])
            slope[at] = np.exp(log_p)
            slope[at][labels[at]] -= 1
        made |= {
            f"{batch}/loss/nll": np.array([nll, count]),
            f"{batch}/mean": np.array(nll / max(count, 1) + BALANCE),
            f"{batch}/slope/{role}": slope / max(count, 1),
        }
        if batch == "batch":
            terms = [
                log_softmax(bfloat16(scores[at]))[labels[at]] for at in zip(*np.nonzero(labels != -100), strict=True)
            ]
            made["half/mean"] = np.array(BALANCE - sum(terms) / max(count, 1))
        if accuracy:
            made[f"{batch}/log/accuracy"] = np.array([right, count])
    return made


# ---------------------------------------------------------------- text


@twin("objective", "clm", source="Radford et al. 2018, equation 1")
def clm(given: Given) -> Arrays:
    made = {"shown": np.array(0.0), "fixed_counts": np.array(1.0), **cross_entropy(given, "tokens", False)}
    for name in ("plain", "answered", "only_special"):
        tokens = given.inputs[f"{name}/tokens"]
        labels = tokens[1:].copy()
        if name == "answered":
            labels[given.inputs["answered/given"][1:]] = -100
        made[f"prepared/ids/{name}"], made[f"prepared/labels/{name}"] = tokens[:-1], labels
        if name != "only_special":
            made[f"prepared/documents/{name}"] = given.inputs[f"{name}/documents"][:-1]
        made[f"n_targets/nll/{name}"] = np.array((labels >= 0).sum())
    return made


@twin(
    "objective", "mlm", source="Devlin et al. 2018, section 3.1 (15 %; 80, 10 and 10 % of these), at least one a sample"
)
def mlm(given: Given) -> Arrays:
    o, n = given.options, float(given.inputs["draws"])
    special = sorted(int(v) for key, v in given.inputs.items() if key.startswith("special/"))
    ordinary = [i for i in range(int(given.inputs["vocabulary"])) if i not in special]
    made = {"fixed_counts": np.array(0.0), **cross_entropy(given, "tokens", True)}
    n_small = len([i for i in range(SIZE) if i not in special])
    made["shown"] = np.array(1 - o["masked"] - o["random"] + o["random"] / n_small)
    for name in ("plain", "answered", "only_special"):
        text = given.inputs[f"{name}/tokens"][:-1]
        may = ~np.isin(text, special)
        if name == "answered":
            may &= ~given.inputs["answered/given"][:-1]
        m = int(may.sum())
        number = np.array(
            [comb(m, k) * o["rate"] ** k * (1 - o["rate"]) ** max(m - k, 0) for k in range(len(text) + 1)]
        )
        number[1] += number[0]  # one target is chosen where chance has chosen none
        number[0] = 0.0
        chosen = may * (o["rate"] + (1 - o["rate"]) ** m / m) if m else np.full(len(text), 1 / len(text))
        read = np.zeros(int(given.inputs["vocabulary"]))
        kept = 0.0
        for token, p in zip(text, chosen, strict=True):
            read[given.inputs["special/mask"]] += p * o["masked"] * (token != given.inputs["special/mask"])
            kept += p * o["masked"] * (token == given.inputs["special/mask"])
            for other in ordinary:
                read[other] += p * o["random"] / len(ordinary) * (other != token)
            kept += p * (1 - o["masked"] - o["random"] + o["random"] / len(ordinary) * (token in ordinary))
        made |= expected(f"targets/{name}", chosen, n) | expected(f"number/{name}", number, n)
        made |= expected(f"read/{name}", read, n, read) | expected(f"kept/{name}", kept, n, kept)
        pairs = sum(
            (o["rate"] * o["random"] / len(ordinary)) ** 2 * (len(ordinary) - len({*text[[i, j]]} & {*ordinary}))
            for i, j in combinations(np.flatnonzero(may), 2)
        )
        made |= expected(f"alike/{name}", pairs, n, 9 * pairs)  # pairs of one sample go together
        known = given.inputs.get(f"{name}/documents")
        made[f"documents/{name}"] = np.array(-1) if known is None else known[:-1]
    return made


def parts_of(total: int, n: int) -> np.ndarray:
    """(n + 1, total + 1): [j, s] is the probability that the first j of n random parts of `total` add up to s."""
    law = np.zeros((n + 1, total + 1))
    law[0, 0] = law[n, total] = 1.0
    for j in range(1, n):
        for s in range(j, total - (n - j) + 1):
            law[j, s] = comb(s - 1, j - 1) * comb(total - s - 1, n - j - 1) / comb(total - 1, n - 1)
    return law


@twin(
    "objective",
    "span_corruption",
    source="Raffel et al. 2019, section 3.1.4; lengths of spans: random_spans_noise_mask of its code",
)
def span_corruption(given: Given) -> Arrays:
    text = given.inputs["plain/tokens"][:-1]
    length, draws = len(text), float(given.inputs["draws"])
    noise = int(min(max(np.rint(length * given.options["density"]), 1), length - 1))
    n = int(min(max(np.rint(noise / given.options["mean_span"]), 1), length - noise))
    kept, gone = parts_of(length - noise, n), parts_of(noise, n)
    taken = np.zeros(length)
    for j in range(1, n + 1):  # the j-th span begins behind j kept parts and j - 1 spans
        begins, ends = np.convolve(kept[j], gone[j - 1]), np.convolve(kept[j], gone[j])
        taken += begins[:length].cumsum() - np.pad(ends, (0, length))[:length].cumsum()
    made = {"shown": np.array(0.0), "fixed_counts": np.array(1.0), **cross_entropy(given, "tokens", False)}
    made["lengths/plain"] = np.array([length - noise + n + 1, noise + n + 1], np.float64)
    taken = np.clip(taken, 0.0, 1.0)
    made |= expected("taken/plain", taken, draws)
    for name, law in (("span_lengths/plain", gone), ("kept_lengths/plain", kept)):
        made |= expected(name, np.pad(law[1], (0, length + 1 - law.shape[1])), draws * n)
    return made


# ---------------------------------------------------------------- records


@twin("objective", "classification", source="Devlin et al. 2018, section 4.1")
def classification(given: Given) -> Arrays:
    made = {"shown": np.array(0.0), "fixed_counts": np.array(1.0), **cross_entropy(given, "classes", True)}
    for i in range(4):
        made[f"prepared/ids/{i}"] = given.inputs[f"record/{i}/tokens"]
        made[f"prepared/labels/{i}"] = given.inputs[f"record/{i}/label"]
        made[f"n_targets/nll/{i}"] = np.array(1)
    made["prepared/segments/3"] = given.inputs["record/3/segments"]
    return made


@twin(
    "objective",
    "reinforce",
    source="Williams 1992, equation 4; the baseline: Kool et al. 2019, equation 8; importance ratios in later steps",
)
def reinforce(given: Given) -> Arrays:
    o = given.options
    rollout = [o[key] for key in ("samples", "max_new", "temperature", "batches", "epochs")]
    made: Arrays = {"shown": np.array(0.0), "fixed_counts": np.array(1.0)}
    made["rollout"] = np.array([*rollout, o["batches"] * o["epochs"]], np.float64)
    for key, rewards in ((k, v) for k, v in given.inputs.items() if k.startswith("rewards/")):
        # With one answer to each prompt, the baseline is that of the answers to other prompts.
        grid = rewards if rewards.shape[1] > 1 else rewards.T
        baseline = np.zeros_like(grid)
        for row, at in np.ndindex(grid.shape):
            others = np.delete(grid[row], at)
            baseline[row, at] = others.mean() if len(others) else 0.0
        made[f"advantages/{key.removeprefix('rewards/')}"] = (grid - baseline).reshape(rewards.shape)
    for i in range(4):
        record = {k.rpartition("/")[2]: v for k, v in given.inputs.items() if k.startswith(f"record/{i}/")}
        prompt = record["prompt"]
        answer = record.get("answer", np.zeros(o["max_new"], np.int64))
        text, silent = np.concatenate([prompt, answer]), len(prompt) - 1
        made |= {
            f"prepared/ids/{i}": text[:-1],
            f"prepared/labels/{i}": np.concatenate([np.full(silent, -100), answer]),
            f"prepared/log_probabilities/{i}": np.concatenate(
                [np.zeros(silent), record.get("log_probabilities", np.zeros(len(answer)))]
            ),
            f"prepared/advantage/{i}": np.asarray(record.get("advantage", 0.0)),
            f"prepared/reward/{i}": np.asarray(record.get("reward", 0.0)),
            f"prepared/answer_length/{i}": np.array(len(answer)),
            f"n_targets/policy/{i}": np.array(1),
            f"passes/{i}": np.array([[len(text) - 1, 1, 1, len(answer)]], np.float64),
        }
    rows = given.inputs["batch/reward"]
    labels, scores = given.inputs["batch/labels"], given.inputs["batch/scores/tokens"]
    loss, of_half, slope = 0.0, 0.0, np.zeros_like(scores)
    for row, t in np.argwhere(labels != -100):
        log_p = log_softmax(scores[row, t, :SIZE] / o["temperature"])  # the other rows of the table are never drawn
        label = labels[row, t]
        ratio = np.exp(log_p[label] - given.inputs["batch/log_probabilities"][row, t])
        advantage = given.inputs["batch/advantage"][row]
        loss -= advantage * ratio
        half = log_softmax(bfloat16(scores[row, t, :SIZE]) / o["temperature"])[label]
        of_half -= advantage * np.exp(half - given.inputs["batch/log_probabilities"][row, t])
        slope[row, t, :SIZE] += advantage * ratio * np.exp(log_p) / o["temperature"]
        slope[row, t, label] -= advantage * ratio / o["temperature"]
    lengths = given.inputs["batch/answer_length"].sum()
    for batch in ("batch", "none"):
        made[f"{batch}/log/reward"] = np.array([rows.sum(), len(rows)])
        made[f"{batch}/log/answer_length"] = np.array([lengths, len(rows)])
    made |= {
        "batch/loss/policy": np.array([loss, len(rows)]),
        "batch/mean": np.array(loss / len(rows) + BALANCE),
        "half/mean": np.array(of_half / len(rows) + BALANCE),
        "batch/slope/tokens": slope / len(rows),
        "none/loss/policy": np.array([-rows.sum(), len(rows)]),
        "none/mean": np.array(-rows.mean()),
    }
    return made
