"""Twins of optimizers, from their papers."""

from __future__ import annotations

import numpy as np

from llmlab.check.twins.observers.optimizer import ALONE, SHOWN_AFTER
from llmlab.twins import Given, twin
from twins import Settings

REFUSED: Settings = {
    "adamw": [
        *(({}, {beta: value}) for beta in ("beta1", "beta2") for value in (-0.1, 1.0)),
        ({}, {"eps": -1e-8}),
        ({}, {"weight_decay": -0.1}),
    ],
}


@twin(
    "optimizer",
    "adamw",
    source="Loshchilov and Hutter 2017, algorithm 2, the decay times the learning rate as in torch 2.13 AdamW; what decays: "
    "nanoGPT's configure_optimizers",
)
def adamw(given: Given) -> dict[str, np.ndarray]:
    o, moved = given.options, {}
    for name in (key.removeprefix("given/") for key in given.inputs if key.startswith("given/")):
        start, gradients = given.inputs[name], given.inputs[f"gradient/{name}"]
        role = name.split(".")[0]
        decays = start.ndim > 1 and role not in ("norm", "bias")
        if o["decay"] == "no_embeddings" and role in ("embed", "position"):
            decays = False
        x, m, v, t, shown = start.copy(), np.zeros_like(start), np.zeros_like(start), 0, []
        for step, rate in enumerate(given.inputs["rates"], 1):
            if given.inputs[f"given/{name}"][step - 1]:
                t, g, lr = t + 1, gradients[step - 1], o["lr"] * rate
                m = o["beta1"] * m + (1 - o["beta1"]) * g
                v = o["beta2"] * v + (1 - o["beta2"]) * g**2
                m_hat, v_hat = m / (1 - o["beta1"] ** t), v / (1 - o["beta2"] ** t)
                x = x - lr * m_hat / (np.sqrt(v_hat) + o["eps"]) - lr * (o["weight_decay"] if decays else 0.0) * x
            if step in SHOWN_AFTER:
                shown.append(x - start)
        moved[name] = np.stack(shown)
    return moved | {f"alone/{name}": moved[name] for name in ALONE}
