"""Twins of the objectives that predict the next token: clm, prefix_lm, fim and mtp, from their papers."""

from __future__ import annotations

from math import ceil, floor

import numpy as np

from llmlab.check.restoring.batches import SIZE
from llmlab.check.twins.observers.scored import BALANCE
from llmlab.twins import Given, twin
from twins import Settings
from twins.norm import bfloat16
from twins.objective.losses import Arrays, cross_entropy, expected, log_softmax

REFUSED: Settings = {
    "clm": [({}, {"z_loss": -0.1}), ({}, {"label_smoothing": -0.1}), ({}, {"label_smoothing": 1.1})],
    "fim": [({}, {key: value}) for key in ("rate", "spm") for value in (-0.1, 1.1)],
    "mtp": [({}, {"weight": 0.0}), ({}, {"weight": -1.0})],
    "prefix_lm": [
        ({}, {"shortest": -0.1}),
        ({}, {"longest": 1.1}),
        ({}, {"shortest": 0.6, "longest": 0.5}),
    ],
}


def regularised(given: Given, z_loss: float, smoothing: float) -> Arrays:
    """(1 - e) x -log p of the label + e x the mean of -log p over the vocabulary + z_loss x (log sum exp)^2: sums, means and
    the mean's gradient, by differences of the whole."""
    made: Arrays = {}
    weights = {"nll": 1 - smoothing, "uniform": smoothing, "z": z_loss}
    asked = ["nll", *(["z"] if z_loss else []), *(["uniform"] if smoothing else [])]

    def terms(scores: np.ndarray, label: int) -> dict[str, float]:
        log_p = log_softmax(scores)
        log_z = np.log(np.exp(scores).sum())
        return {"nll": -log_p[label], "uniform": -log_p[:SIZE].mean(), "z": log_z**2}

    def slope(scores: np.ndarray, label: int) -> np.ndarray:
        p = np.exp(log_softmax(scores))
        at, everywhere = np.zeros(len(scores)), np.zeros(len(scores))
        at[label], everywhere[:SIZE] = 1.0, 1 / SIZE
        wanted = (1 - smoothing) * at + smoothing * everywhere
        return p - wanted + z_loss * 2 * np.log(np.exp(scores).sum()) * p

    for batch in ("batch", "none"):
        labels, scores = given.inputs[f"{batch}/labels"], given.inputs[f"{batch}/scores/tokens"]
        places = [tuple(at) for at in np.argwhere(labels >= 0)]
        each = [terms(scores[at], labels[at]) for at in places]
        n = max(len(places), 1)
        sums = {name: sum(t[name] for t in each) for name in asked}
        made |= {f"{batch}/loss/{name}": np.array([sums[name], len(places)]) for name in asked}
        made[f"{batch}/mean"] = np.array(sum(weights[name] * sums[name] / n for name in asked) + BALANCE)
        made[f"{batch}/slope/tokens"] = np.zeros_like(scores)
        for at in places:
            made[f"{batch}/slope/tokens"][at] = slope(scores[at], labels[at]) / n
        if z_loss:
            made[f"{batch}/weight/z"] = np.array(z_loss)
        if smoothing:
            made |= {f"{batch}/weight/{name}": np.array(weights[name]) for name in ("nll", "uniform")}
        if batch == "batch":
            half = [terms(bfloat16(scores[at]), labels[at]) for at in places]
            made["half/mean"] = np.array(sum(weights[k] * t[k] / n for t in half for k in asked) + BALANCE)
    return made


def shifted(given: Given, terms: dict[str, int]) -> Arrays:
    """Texts of which each token but the first is a target, unless it is given. terms: of how many at the beginning a term has
    none."""
    made: Arrays = {}
    for name in ("plain", "answered", "only_special"):
        tokens = given.inputs[f"{name}/tokens"]
        labels = tokens[1:].copy()
        if name == "answered":
            labels[given.inputs["answered/given"][1:]] = -100
        made[f"prepared/ids/{name}"], made[f"prepared/labels/{name}"] = tokens[:-1], labels
        if name != "only_special":
            made[f"prepared/documents/{name}"] = given.inputs[f"{name}/documents"][:-1]
        for term, without in terms.items():
            made[f"n_targets/{term}/{name}"] = np.array((labels[without:] >= 0).sum())
    return made


@twin(
    "objective",
    "clm",
    source="Radford et al. 2018, equation 1; z-loss: Chowdhery et al. 2022, section 5; smoothing: Szegedy et al. 2015, "
    "section 7",
)
def clm(given: Given) -> Arrays:
    z_loss, smoothing = given.options["z_loss"], given.options["label_smoothing"]
    made = {"shown": np.array(0.0), "fixed_counts": np.array(1.0), **regularised(given, z_loss, smoothing)}
    terms = {"nll": 0, **({"z": 0} if z_loss else {}), **({"uniform": 0} if smoothing else {})}
    return made | shifted(given, terms)


@twin("objective", "prefix_lm", source="Raffel et al. 2019, section 3.2.3; lengths: split_tokens of its code")
def prefix_lm(given: Given) -> Arrays:
    draws = float(given.inputs["draws"])
    made = {"shown": np.array(0.0), "fixed_counts": np.array(0.0), **cross_entropy(given, "tokens", False)}
    for name in ("plain", "answered", "only_special"):
        tokens = given.inputs[f"{name}/tokens"]
        n = len(tokens) - 1
        shares = given.options["shortest"], given.options["longest"]
        lengths = [p for p in range(1, n + 1) if ceil(n * shares[0]) <= p <= floor(n * shares[1])]
        lengths = lengths or [max(1, ceil(n * shares[0]))]
        law = np.array([p in lengths for p in range(n + 1)]) / len(lengths)
        made |= expected(f"prefix_len/{name}", law, draws)
        # Place i predicts token i + 1, which stands behind a prefix of up to i + 1 tokens.
        targets = law.cumsum()[1:]
        if name == "answered":
            targets = targets * ~given.inputs["answered/given"][1:]
        made |= expected(f"targets/{name}", targets, draws)
        known = given.inputs.get(f"{name}/documents")
        made[f"documents/{name}"] = np.array(-1) if known is None else known[:-1]
    return made


def documents_of(tokens: np.ndarray, known: np.ndarray | None) -> list[list[int]]:
    """The places of each document's tokens: it ends with eos (1), or where the next begins by its number."""
    found: list[list[int]] = [[]]
    for i, token in enumerate(tokens):
        found[-1].append(i)
        if i + 1 < len(tokens) and (token == 1 or (known is not None and known[i + 1] != known[i])):
            found.append([])
    return found


@twin(
    "objective",
    "fim",
    source="Bavarian et al. 2022, section 3 (PSM and SPM trained jointly, at the level of the context)",
)
def fim(given: Given) -> Arrays:
    draws, rate, spm = float(given.inputs["draws"]), given.options["rate"], given.options["spm"]
    made = {"shown": np.array(0.0), "fixed_counts": np.array(0.0), **cross_entropy(given, "tokens", False)}
    for name in ("plain", "answered", "only_special"):
        tokens = given.inputs[f"{name}/tokens"]
        answered = given.inputs["answered/given"] if name == "answered" else np.zeros(len(tokens), bool)
        documents = documents_of(tokens, given.inputs.get(f"{name}/documents"))

        def body(own: list[int], tokens: np.ndarray = tokens, answered: np.ndarray = answered) -> int:
            """Tokens between those that are given in front and the eos at the end."""
            left = [i for i in own if not answered[i]]
            return len(left) - (len(left) > 0 and tokens[left[-1]] == 1)

        def law(at: int, room: int, body=body, documents=documents) -> np.ndarray:  # type: ignore[no-untyped-def]
            """The chances of 0, 1, 2 ... rearranged documents from this one on, with room for so many tokens."""
            none = np.eye(18)[0]
            if at == len(documents) or room <= 0:
                return none
            kept = law(at + 1, room - len(documents[at]))
            fits = documents[at][: max(room - 3, 0)]
            if body(fits) < 1:
                return kept
            return (1 - rate) * kept + rate * np.roll(law(at + 1, room - 3 - len(fits)), 1)

        made |= expected(f"rearranged/{name}", law(0, len(tokens))[: len(tokens)], draws)
        m = body(documents[0])
        ways = [(min(a, b), max(a, b)) for a in range(m + 1) for b in range(m + 1)]
        prefix, middle = np.zeros(len(tokens)), np.zeros(len(tokens))
        empty = sum(a == 0 for a, _ in ways) / len(ways)
        for a, b in ways:
            prefix[a] += (1 - spm) / len(ways)
            middle[b - a] += (1 - spm) / len(ways)
            prefix[0] += spm / len(ways)
            middle[b] += spm / len(ways)
        suffix_first = spm + (1 - spm) * empty
        shares = np.array([1 - rate, rate * (1 - suffix_first), rate * suffix_first])
        made |= expected(f"orders/{name}", shares, draws)
        if rate:
            n = draws * rate * 0.8  # as many are sure to be rearranged
            made |= expected(f"prefix/{name}", prefix, n) | expected(f"middle/{name}", middle, n)
        else:
            made |= {f"{key}/{name}": np.zeros(len(tokens)) for key in ("prefix", "middle")}
        made[f"length/{name}"] = np.array(len(tokens) - 1)
    return made


@twin("objective", "mtp", source="DeepSeek-AI 2024, equations 21 to 25")
def mtp(given: Given) -> Arrays:
    depth, weight = given.options["depth"], given.options["weight"]
    made = {"shown": np.array(0.0), "fixed_counts": np.array(1.0), **cross_entropy(given, "tokens", False)}
    made |= {f"shares/module_{k}": np.array([1, 0, 0]) for k in range(1, depth + 1)}  # equation 21: Emb is the model's
    made |= shifted(given, {f"nll_{k + 1}" if k else "nll": k for k in range(depth + 1)})
    head = given.inputs["head"]
    tables = [given.inputs["hidden"], *(given.inputs[f"hidden/module_{k}"] for k in range(1, depth + 1))]
    for batch in ("batch", "none"):
        ids, labels = given.inputs[f"{batch}/ids"], given.inputs[f"{batch}/labels"]
        length = ids.shape[1]
        slopes = [np.zeros_like(table) for table in tables]
        extra = 0.0
        made[f"{batch}/read/model"] = ids[None]
        made[f"{batch}/documents/model/0"] = given.inputs[f"{batch}/documents"]
        for k in range(1, depth + 1):
            # Of token i: its own state and, halved each time, those of the k - 1 modules before and of the model.
            places = [(b, i) for b in range(len(ids)) for i in range(length - k)]
            used = [(b, i) for b, i in places if labels[b, i + k] >= 0]
            total = 0.0
            for b, i in used:
                state = sum(0.5 ** (k - j) * tables[j][ids[b, i + j]] for j in range(k + 1))
                log_p = log_softmax(state @ head)
                total -= log_p[labels[b, i + k]]
                back = np.exp(log_p)
                back[labels[b, i + k]] -= 1
                for j in range(k + 1):
                    slopes[j][ids[b, i + j]] += 0.5 ** (k - j) * (head @ back) * weight / depth / len(used)
            made[f"{batch}/loss/nll_{k + 1}"] = np.array([total, len(used)])
            made[f"{batch}/read/module_{k}"] = ids[None, :, k:]
            # A module stands where the state does that it reads: token i's, though it is given token i + k.
            made[f"{batch}/documents/module_{k}/0"] = given.inputs[f"{batch}/documents"][:, : length - k]
            made[f"{batch}/weight/nll_{k + 1}"] = np.array(weight / depth)
            extra += weight / depth * total / max(len(used), 1)
        # Each module says what its own experts lose.
        made[f"{batch}/mean"] = made[f"{batch}/mean"] + extra + depth * BALANCE
        if batch == "batch":
            made["half/mean"] = made["half/mean"] + extra + depth * BALANCE
        for k, slope in enumerate(slopes):
            made[f"{batch}/slope/{f'module_{k}.hidden' if k else 'hidden'}"] = slope
    return made
