"""Optimizers from their papers."""

from __future__ import annotations

import numpy as np

from llmlab.check.twins.observers.optimizer import ALONE
from llmlab.twins import Given, twin

TOLD = (1, 2, 5, 10)


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
        x, m, v, t, told = start.copy(), np.zeros_like(start), np.zeros_like(start), 0, []
        for step, rate in enumerate(given.inputs["rates"], 1):
            if given.inputs[f"given/{name}"][step - 1]:
                t, g, lr = t + 1, gradients[step - 1], o["lr"] * rate
                m = o["beta1"] * m + (1 - o["beta1"]) * g
                v = o["beta2"] * v + (1 - o["beta2"]) * g**2
                m_hat, v_hat = m / (1 - o["beta1"] ** t), v / (1 - o["beta2"] ** t)
                x = x - lr * m_hat / (np.sqrt(v_hat) + o["eps"]) - lr * (o["weight_decay"] if decays else 0.0) * x
            if step in TOLD:
                told.append(x - start)
        moved[name] = np.stack(told)
    return moved | {f"alone/{name}": moved[name] for name in ALONE}
