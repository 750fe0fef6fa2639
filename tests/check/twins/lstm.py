"""LSTMs with projections from their papers, a token and a document at a time."""

from __future__ import annotations

import numpy as np

from llmlab.check.twins.observers.recurrence import BEFORE
from llmlab.twins import Given, twin

NAMES = ("from_left", "from_right")


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def text(given: Given, cell: str, x: np.ndarray) -> list[np.ndarray]:
    """h of each token of one text (n, I), in order, by Sak et al. 2014, equations 7 to 12 without peepholes."""
    weight = {name: given.weights[f"cells.{cell}.{name}.weight"] for name in ("x", "h", "out")}
    bias, state = given.weights[f"cells.{cell}.x.bias"], weight["out"].shape[1]
    h, c, out = np.zeros(weight["out"].shape[0]), np.zeros(state), []
    for x_t in x:
        gates = weight["x"] @ x_t + weight["h"] @ h + bias
        i, f, g, o = (gates[k * state : (k + 1) * state] for k in range(4))
        c = sigmoid(f + given.options["forget_bias"]) * c + sigmoid(i) * np.tanh(g)
        h = weight["out"] @ (sigmoid(o) * np.tanh(c))
        out.append(h)
    return out


def outputs(given: Given, apart: bool) -> dict[str, np.ndarray]:
    sizes, x = given.sizes, given.inputs["x"]
    rows, length, dim = x.shape
    cells = NAMES[:1] if sizes.causal else NAMES

    def read(documents: np.ndarray, valid: np.ndarray) -> np.ndarray:
        y = np.zeros((rows, length, dim))
        width = dim // len(cells)
        for row in range(rows):
            for document in set(documents[row].tolist()):
                where = [t for t in range(length) if documents[row, t] == document and valid[row, t]]
                for n, cell in enumerate(cells):
                    own = slice(n * width, (n + 1) * width)
                    order = where[::-1] if n else where
                    for t, h in zip(
                        order, text(given, cell, x[row, order][:, own if apart else slice(None)]), strict=True
                    ):
                        y[row, t, own] = h
        return y

    one, every = np.zeros((rows, length), int), np.ones((rows, length), bool)
    documents, valid = given.inputs["documents"], given.inputs["valid"]
    padded = read(one, valid)
    out = {"self": read(one, every), "packed": read(documents, every), "padded": padded, "both": read(documents, valid)}
    return {**out, **({"cached": padded[:, BEFORE:]} if sizes.causal else {})}


def together(given: Given) -> dict[str, np.ndarray]:
    return outputs(given, apart=False)


def apart(given: Given) -> dict[str, np.ndarray]:
    return outputs(given, apart=True)


TWINS = ("lstm", "lstm_apart")
SOURCE = "Sak et al. 2014, equations 7 to 12, without peepholes; forget bias as Jozefowicz et al. 2015, section 4"
twin("attention", "lstm", source=SOURCE)(together)
twin("attention", "lstm_apart", source=f"Peters et al. 2018, section 3.1, over {SOURCE}")(apart)
