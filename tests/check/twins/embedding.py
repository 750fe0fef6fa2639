"""Twins of embeddings, from their papers."""

from __future__ import annotations

import math

import numpy as np

from llmlab.check.twins.observers.embedding import LENGTH, OFFSET
from llmlab.twins import Given, twin
from twins import Settings
from twins.attention import layernorm, linear

MORE: Settings = {
    "token": [({}, {"table_width": 1})],
    "char_cnn": [({}, {"longest": 12}), ({"dim": 80}, {"twice": True, "filters": [2, 3, 4]}), ({}, {"highways": 0})],
    "bert": [({"token_types": 3}, {}), ({"token_types": 3}, {"scale": True})],
    "factorized": [
        ({"token_types": 3}, {"scale": True}),
        ({}, {"width": 10}),
        ({}, {"width": 2}),
        ({"dim": 80}, {}),
    ],
}
REFUSED: Settings = {
    "char_cnn": [
        *(({}, {key: 0}) for key in ("char_dim", "longest")),
        *(
            ({}, {key: value})
            for key, value in (("filters", [2, 0]), ("filters", []), ("highways", -1), ("longest", 6))
        ),
        ({"dim": 25}, {"twice": True}),
    ],
    "token": [({}, {"table_width": 0})],
    "bert": [({}, {"width": 0})],
    "factorized": [({}, {"width": 0})],
}


def outputs(given: Given, vectors, *, trained, gain: float, dropped: np.ndarray | float = 0.0) -> dict[str, np.ndarray]:
    """Outputs by call, of vectors(table, positions (T, E), segments or None, queries or None) -> (B, T, D)."""
    table, shared, inputs = given.weights["table.weight"], given.inputs["shared"], given.inputs
    nowhere, places = np.zeros_like(inputs["places"][:LENGTH]), inputs["places"][OFFSET:]
    segments = inputs.get("segments")
    rows = np.zeros(len(table))
    rows[[i for i in inputs["ids"].flat if trained(i)]] = 1.0
    return {
        "alone": vectors(table, nowhere, None, None),
        "placed": vectors(table, places, segments, None),
        "asked": vectors(table, places, None, inputs["queries"]),
        "shared": vectors(shared, places, segments, None),
        "dropped": np.zeros((*inputs["ids"].shape, given.sizes.dim)) + dropped,
        "weight": table,
        "shared_weight": shared,
        "trained": rows,
        "learns": np.ones(len(given.weights)),
        "gain": np.array(gain),
    }


def tokens(given: Given) -> dict[str, np.ndarray]:
    gain = math.sqrt(given.sizes.dim) if given.options.get("scale") else 1.0

    def vectors(table, places, segments, queries) -> np.ndarray:
        x = gain * table[given.inputs["ids"]]
        if "query.weight" in given.weights and queries is not None:
            x[queries] = given.weights["query.weight"][0]
        if "project.weight" in given.weights:
            x = linear(given, "project", x)
        return x + places

    return outputs(given, vectors, trained=lambda i: True, gain=gain)


SCALED = "Gemma 2024, section 2, and Vaswani et al. 2017, section 3.4"
twin("embedding", "token", source="Vaswani et al. 2017, sections 3.4 and 3.5; a narrower table as in OPT-350m's code")(
    tokens
)
twin("embedding", "scaled", source=SCALED)(tokens)
twin("embedding", "two_stream", source="Yang et al. 2019, section 2.3: g_0 = w for queries, h_0 = e(x) for text")(
    tokens
)


def bert(given: Given) -> dict[str, np.ndarray]:
    options, sizes = given.options, given.sizes
    width = given.weights["table.weight"].shape[1]
    usual = max(16, sizes.dim // 4) if options["project"] else sizes.dim
    assert width == (options["width"] or usual)
    projected = options["project"] or width != sizes.dim
    gain = math.sqrt(width) if options["scale"] else 1.0

    def vectors(table, places, segments, queries) -> np.ndarray:
        x = gain * table[given.inputs["ids"]] + places
        if sizes.token_types:
            x = (
                x
                + given.weights["segments.weight"][np.zeros_like(given.inputs["ids"]) if segments is None else segments]
            )
        x = layernorm(given, "norm", x, sizes.norm_eps)
        return linear(given, "project", x) if projected else x

    dropped = given.weights["project.bias"] if projected else 0.0  # dropout comes before the projection
    return outputs(given, vectors, trained=lambda i: i != options["pad_id"], gain=gain, dropped=dropped)


twin("embedding", "bert", source="Devlin et al. 2018, figure 2; the scale as in BART's code")(bert)
twin("embedding", "factorized", source="Lan et al. 2019, section 3.1; the projection's bias as in ALBERT's code")(bert)


@twin("embedding", "mtp", source="DeepSeek-AI 2024, equation 21")
def mtp(given: Given) -> dict[str, np.ndarray]:
    nothing, eps = np.zeros((*given.inputs["ids"].shape, given.sizes.dim)), given.sizes.norm_eps

    def joined(hidden: np.ndarray, x: np.ndarray) -> np.ndarray:
        both = [layernorm(given, "hidden_norm", hidden, eps), layernorm(given, "token_norm", x, eps)]
        return linear(given, "project", np.concatenate(both, -1))

    def vectors(table, places, segments, queries) -> np.ndarray:
        hidden = nothing if queries is None else given.inputs["hidden"]
        return joined(hidden, table[given.inputs["ids"]] + places)

    return outputs(given, vectors, trained=lambda i: True, gain=1.0, dropped=joined(nothing, nothing))


@twin("embedding", "char_cnn", source="Kim et al. 2015, sections 2.2 and 2.3; bilm-tf's data.py and model.py")
def char_cnn(given: Given) -> dict[str, np.ndarray]:
    weights, options, inputs = given.weights, given.options, given.inputs
    longest = options["longest"]

    def spelled(i: int) -> list[int]:
        own = [b for b in inputs["spelled"][i].tolist() if b >= 0] or [261, *str(i).encode()]
        row = [258, *own[: longest - 2], 259]
        return row + [260] * (longest - len(row))

    def filtered(x: np.ndarray, n: int) -> np.ndarray:
        # The weights of a filter are numbered by place, then by number of a character's vector.
        weight, bias = weights[f"filters.{n}.linear.weight"], weights[f"filters.{n}.linear.bias"]
        places = [weight @ x[at : at + n + 1].reshape(-1) + bias for at in range(longest - n)]
        return np.maximum(np.max(places, 0), 0)

    def vector(i: int) -> np.ndarray:
        x = weights["table_of_chars.weight"][spelled(i)]
        kinds = sum(path.startswith("filters.") and path.endswith("weight") for path in weights)
        y = np.concatenate([filtered(x, n) for n in range(kinds)])
        for n in range(options["highways"]):
            gate = 1 / (1 + np.exp(-linear(given, f"highways.{n}.gate", y)))
            y = gate * np.maximum(linear(given, f"highways.{n}.linear", y), 0) + (1 - gate) * y
        y = linear(given, "project", y)
        return np.concatenate([y, y]) if options["twice"] else y

    alone = np.array([[vector(i) for i in row] for row in inputs["ids"]])
    counts = options["filters"] or [
        max(1, round(n * (given.sizes.dim // (2 if options["twice"] else 1)) / 512))
        for n in (32, 32, 64, 128, 256, 512, 1024)
    ]
    assert [len(weights[f"filters.{n}.linear.bias"]) for n in range(len(counts))] == list(counts)
    return {
        "alone": alone,
        "placed": alone + inputs["places"][OFFSET:],
        "dropped": np.zeros_like(alone),
        "learns": np.ones(sum(path != "chars" for path in weights)),
    }
