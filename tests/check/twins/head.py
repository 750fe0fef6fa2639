"""Twins of heads, from their papers, one text or token at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llmlab.twins import Given, twin
from twins import Settings, simple
from twins.roles import roles

TABLES = (
    {"tie_embeddings": True},
    {"tie_embeddings": True, "embed_dim": 16},
    {"embed_dim": 16},
    {"logit_scale": 0.3},
    {"logit_softcap": 1.5},
    {"tie_embeddings": True, "logit_scale": 3.0, "logit_softcap": 2.0},
)
MORE: Settings = {
    "lm": [
        *((sizes, {}) for sizes in TABLES),
        ({"tie_embeddings": True, "logit_scale": 0.5}, {"bias": True, "unit_rows": True, "fixed_bias": True}),
        ({"tie_embeddings": True, "embed_dim": 16, "logit_softcap": 4.0}, {"bias": True, "fixed_bias": True}),
    ],
    "mlm": [*((sizes, {}) for sizes in TABLES), ({"tie_embeddings": True}, {"bias": False, "dense_bias": False})],
    "context": [({"embed_dim": 16}, {})],
    "biased_context": [({"embed_dim": 16}, {})],
    "subwords": [({"embed_dim": 16}, {})],
    "boundary": [*((sizes, {}) for sizes in TABLES[:3]), ({}, None)],
    "pooled": [
        ({"dropout": 1.0}, {}),
        ({"dropout": 1.0}, {"n_classes": 0, "input_dropout": True}),
        ({"dropout": 1.0}, {"dropout": 0.0}),
        ({}, {"pool": "mean", "normed": True, "n_classes": 0, "act": "none"}),
    ],
    "scalar": [({"dropout": 1.0}, {}), ({}, {"bias": True, "dense_bias": False, "act": "gelu"})],
    "token": [
        ({}, {"n_classes": 1}),
        ({"dropout": 1.0}, {}),
        ({"dropout": 1.0}, {"dropout": 0.0}),
        ({}, {"act": "gelu", "normed": True}),
    ],
    "span": [({"dropout": 1.0}, {})],
    "replaced": [({"dropout": 1.0}, {})],
    "value": [({"dropout": 1.0}, {})],
}

# ---------------------------------------------------------------- heads over the vocabulary


def role(path: str) -> str:
    if "norm" in path or path.startswith("mix."):
        return "norm"
    return {"out.weight": "head", "offsets.weight": "position"}.get(path, "other")


def parameters(given: Given) -> list[str]:
    return [p.removeprefix("head.") for p in given.weights if p.startswith("head.") and "fixed" not in p]


def hidden(given: Given) -> np.ndarray:
    """What is read: `h`, or ELMo's equation 1 of all layers."""
    if not given.options.get("mixed"):
        return given.inputs["h"]
    odds = np.exp(given.weights["head.mix.weights"])
    layers = given.inputs["layers"]
    total = sum(odds[j] * layers[j] for j in range(len(layers))) / odds.sum()
    return given.weights["head.mix.gain"][0] * total


def per_token(given: Given, answer: Callable[[np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
    h = hidden(given)
    full = answer(h)
    return {
        "full": full,
        "rows": answer(h[given.inputs["rows"]]),
        "roles": roles(parameters(given), role),
    }


@twin("head", "both_ways", source="Peters et al. 2018, section 3.1: one softmax layer for both directions")
def both_ways(given: Given) -> dict[str, np.ndarray]:
    def answer(h: np.ndarray) -> np.ndarray:
        half = h.shape[-1] // 2
        bias = given.weights.get("head.out.bias", 0.0)
        each = [part @ given.weights["head.out.weight"].T + bias for part in (h[..., :half], h[..., half:])]
        return np.stack(each, -2)

    return per_token(given, answer)


@twin("head", "lm", source="Press & Wolf 2016, section 3; c tanh(x / c) as in Gemma 2 (arXiv:2408.00118), section 2")
def lm(given: Given) -> dict[str, np.ndarray]:
    sizes = given.sizes

    def answer(h: np.ndarray) -> np.ndarray:
        table = given.weights["embedding.weight" if sizes.tie_embeddings else "head.out.weight"]
        if table.shape[1] != h.shape[-1]:
            h = h @ given.weights["head.down.weight"].T
        if given.options["unit_rows"]:
            table = np.array([row / np.sqrt((row**2).sum()) for row in table])
        y = h @ table.T
        for name in ("bias", "fixed_bias"):
            if given.options[name]:
                y = y + given.weights[f"head.{name}"]
        y = y * (1.0 if sizes.logit_scale is None else sizes.logit_scale)
        c = sizes.logit_softcap
        return y if c is None else c * np.tanh(y / c)

    return per_token(given, answer)


@twin(
    "head",
    "mlm",
    source="Devlin et al. 2018 as google-research/bert's run_pretraining.py, get_masked_lm_output, has it",
)
def mlm(given: Given) -> dict[str, np.ndarray]:
    sizes = given.sizes

    def answer(h: np.ndarray) -> np.ndarray:
        inner = simple.ACTIVATIONS[given.options["act"]](simple.linear(given, "head.dense", h))
        h = simple.norm(given, "head.norm", inner)
        table = given.weights["embedding.weight" if sizes.tie_embeddings else "head.out.weight"]
        y = h @ table.T + given.weights.get("head.bias", 0.0)
        return y * (1.0 if sizes.logit_scale is None else sizes.logit_scale)

    return per_token(given, answer)


@twin("head", "projection", source="Jiao et al. 2019 (TinyBERT), equation 8")
def projection(given: Given) -> dict[str, np.ndarray]:
    made = per_token(given, lambda h: h @ given.weights["head.out.weight"].T + given.weights.get("head.out.bias", 0.0))
    return made | {"roles": roles(parameters(given), lambda _: "other")}


@twin("head", "boundary", source="Joshi et al. 2019 (SpanBERT), equations of section 3.2")
def boundary(given: Given) -> dict[str, np.ndarray]:
    h, table = given.inputs["h"], given.weights["embedding.weight" if given.sizes.tie_embeddings else "head.out.weight"]
    left, right, offset = (given.inputs[f"boundary_{what}"] for what in ("left", "right", "offset"))
    answers = []
    for text in range(len(h)):
        for target in range(left.shape[1]):
            x = np.concatenate(
                [
                    h[text, left[text, target]],
                    h[text, right[text, target]],
                    given.weights["head.offsets.weight"][min(offset[text, target], given.options["longest"] - 1)],
                ]
            )
            for linear, norm in (("wide", "wide_norm"), ("dense", "norm")):
                inner = simple.ACTIVATIONS["gelu"](simple.linear(given, f"head.{linear}", x))
                x = simple.norm(given, f"head.{norm}", inner)
            answers.append(x @ table.T + given.weights["head.bias"])
    y = np.array(answers).reshape(*left.shape, -1)
    return {
        "full": y,
        "padded": y,
        "source": y,
        "needy": np.array(1.0),
        "roles": roles(parameters(given), role),
    }


# ---------------------------------------------------------------- heads over classes


def dropout(given: Given) -> float:
    of_part = given.options["dropout"]
    return given.sizes.dropout if of_part is None else of_part


def scores(given: Given, x: np.ndarray, training: bool = False) -> np.ndarray:
    """Scores of the vector x that is read; in training all that drops out is 0."""
    options, drops = given.options, training and dropout(given) == 1.0
    if drops and options.get("input_dropout"):
        x = 0 * x
    if options["act"] != "none":
        x = simple.ACTIVATIONS[options["act"]](simple.linear(given, "head.dense", x))
    if options["normed"]:
        x = simple.norm(given, "head.norm", x)
    if "head.out.weight" not in given.weights:
        return x
    return simple.linear(given, "head.out", 0 * x if drops else x)


def has_full_dropout(given: Given) -> bool:
    return given.sizes.dropout == 1.0 or given.options["dropout"] == 1.0


SCORES = "a score is w . dropout(x) + b, x perhaps through act(dense) and a norm"


@twin("head", "token", source=f"Devlin et al. 2018, section 4: {SCORES}")
@twin("head", "span", source=f"Devlin et al. 2018, section 4.2: {SCORES}")
@twin("head", "value", source=f"Schulman et al. 2017, section 5, a value for each state: {SCORES}")
@twin(
    "head",
    "replaced",
    source=f"Clark et al. 2020, section 2, as google-research/electra's discriminator: {SCORES}",
)
def token(given: Given) -> dict[str, np.ndarray]:
    def answer(h: np.ndarray, training: bool = False) -> np.ndarray:
        y = scores(given, h, training)
        return y[..., 0] if given.options["n_classes"] == 0 else y

    found = per_token(given, answer)
    if has_full_dropout(given):
        found["training"] = answer(hidden(given), training=True)
    return found


def pooled_vector(given: Given, h: np.ndarray, ids: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The vector (D,) that is read of one text (T, D)."""
    pool, skip, only = (given.options[key] for key in ("pool", "skip", "only"))
    if pool in ("first", "end"):
        return h[0 if pool == "first" else len(h) - 1]
    if only is not None:
        counted = [t for t in range(len(h)) if ids[t] == only]
    elif skip is not None:
        counted = [t for t in range(len(h)) if ids[t] != skip]
    else:
        counted = [t for t in range(len(h)) if valid[t]]
    return h[counted[-1]] if pool == "last" else sum(h[t] for t in counted) / len(counted)


@twin(
    "head",
    "pooled",
    source=f"Devlin et al. 2018, section 3.1, the [CLS] token; other poolings by their names; {SCORES}",
)
@twin(
    "head",
    "vector",
    source=f"Gao et al. 2021, section 6.3, the MLP over [CLS], as BERT's pooler; other poolings by their names; {SCORES}",
)
@twin(
    "head",
    "scalar",
    source=f"Ouyang et al. 2022, section 3.4, read at the last token; other poolings by their names; {SCORES}",
)
def pooled(given: Given) -> dict[str, np.ndarray]:
    h, (ids, valid) = hidden(given), (given.inputs[key] for key in ("ids", "valid"))
    every = np.ones_like(valid)

    def answer(h: np.ndarray, ids: np.ndarray, valid: np.ndarray, training: bool = False) -> np.ndarray:
        read = [pooled_vector(given, *text) for text in zip(h, ids, valid, strict=True)]
        return np.array([scores(given, x, training) for x in read])

    found = {
        "full": answer(h, ids, every),
        "padded": answer(h, ids, valid),
        "source": answer(h, given.inputs["source_ids"], every),
        "later": answer(h[:, 2:], ids[:, 2:], valid[:, ::-1][:, 2:]),
        "roles": roles(parameters(given), role),
    }
    if has_full_dropout(given):
        found["training"] = answer(h, ids, every, training=True)
    return found


@twin(
    "head",
    "biased_context",
    source="Pennington et al. 2014, EMNLP (D14-1162), equation 7; the mean of several: word2vec.c",
)
@twin("head", "context", source="Mikolov et al. 2013, arXiv:1310.4546, section 2.2; the mean of several: word2vec.c")
def context(given: Given) -> dict[str, np.ndarray]:
    """The product of a token's vector in the second table and the mean of the vectors of its group, token by token."""
    around, ids = given.inputs["context"], given.inputs["ids"]
    words, table = given.weights["embedding.weight"], given.weights["head.table.weight"]
    scores = np.zeros(ids.shape)
    each = ids.shape[1] // around.shape[1]
    for row, at in np.ndindex(ids.shape):
        vectors = [words[i] for i in around[row, at // each] if i >= 0]
        if vectors:
            scores[row, at] = np.mean(vectors, 0) @ table[ids[row, at]]
        if given.options["bias"]:
            own = [given.weights["head.context_bias"][i] for i in around[row, at // each] if i >= 0]
            scores[row, at] += given.weights["head.bias"][ids[row, at]] + (np.mean(own) if own else 0)
    made = {"full": scores, "padded": scores, "source": scores, "needy": np.array(0.0)}
    paths = ["table.weight", *(["bias", "context_bias"] if given.options["bias"] else [])]
    return made | {"roles": roles(paths, lambda path: "head" if "." in path else "bias")}


@twin(
    "head",
    "subwords",
    source="Bojanowski et al. 2017, arXiv:1607.04606, section 3.2; the mean: fastText 0.9, Model::computeHidden",
)
def subwords(given: Given) -> dict[str, np.ndarray]:
    around, hashes, ids = (given.inputs[key] for key in ("context", "subwords", "ids"))
    words, table, grams = (given.weights[f"{key}.weight"] for key in ("embedding", "head.table", "head.grams"))
    scores = np.zeros(ids.shape)
    each = ids.shape[1] // around.shape[1]
    for row, at in np.ndindex(ids.shape):
        vectors = [words[i] for i in around[row, at // each] if i >= 0]
        vectors += [grams[i % given.options["buckets"]] for i in hashes[row, at // each] if i >= 0]
        if vectors:
            scores[row, at] = np.mean(vectors, 0) @ table[ids[row, at]]
    made = {"full": scores, "padded": scores, "source": scores, "needy": np.array(0.0)}
    return made | {"roles": roles(["table.weight", "grams.weight"], lambda path: "head" if path[0] == "t" else "embed")}
