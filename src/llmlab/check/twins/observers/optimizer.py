"""Observer of optimizers: ten steps over parameters of every role.

Inputs: the first values of each parameter under its name, ROLE or ROLE.MORE; its gradients `gradient/NAME` (10, ...);
`given/NAME` (10,), True in the steps in which it has a gradient; and `rates` (10,), factors on the learning rate.
Outputs: under each parameter's name, how far it has moved after 1, 2, 5 and 10 steps; under `alone/NAME` where the
optimizer has no other.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor, nn

from llmlab.check.twins.observers.observed import Observed, arrays, build, given, uniform
from llmlab.check.twins.settings import Setting
from llmlab.slots import Role

N_STEPS, SHOWN_AFTER = 10, (1, 2, 5, 10)
VECTORS = ("norm", "bias")
# Experts' weights and biases, which have a dimension more; a vector that is neither norm nor bias; gradients so small
# that eps counts.
MORE = {
    "ffn_in.experts": (2, 3, 2),
    "bias.experts": (2, 3),
    "norm.heads": (2, 3),
    "other.vector": (3,),
    "q.flat": (3, 2),
}
SOMETIMES, NEVER = "ffn_out.sometimes", "head.never"  # have a gradient in every other step, and in none
ALONE = ("norm", "bias", "q")  # as where all else is frozen


def observe(setting: Setting) -> Observed:
    shapes = {role: (3,) if role in VECTORS else (3, 2) for role in get_args(Role)} | MORE
    shapes |= {SOMETIMES: (3, 2), NEVER: (3, 2)}
    inputs: dict[str, Tensor] = {"rates": 1 - 0.08 * torch.arange(N_STEPS).double()}
    for name, shape in shapes.items():
        inputs[name] = uniform(f"value {name}", *shape)
        size = 3e-8 if name == "q.flat" else 1.0
        # Gradients have one sign more often than the other and grow over the steps, so that both means count.
        growing = torch.linspace(0.2, 2.0, N_STEPS).double().view(-1, *[1] * len(shape))
        inputs[f"gradient/{name}"] = size * growing * (uniform(f"gradient {name}", N_STEPS, *shape) + 0.3)
        inputs[f"given/{name}"] = _given(name)
    outputs = _moved(setting, inputs, list(shapes))
    for name in ALONE:
        outputs[f"alone/{name}"] = _moved(setting, inputs, [name])[name]
    return Observed(given(setting, inputs), arrays(outputs))


def _moved(setting: Setting, inputs: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """How far each of these parameters has moved, where the optimizer has no others."""
    params: list[tuple[str, nn.Parameter, Role]] = [
        (
            name,
            nn.Parameter(inputs[name].clone()),
            next(role for role in get_args(Role) if role == name.partition(".")[0]),
        )
        for name in names
    ]
    optimizer = build(setting).build(params)
    rates = [group["lr"] for group in optimizer.param_groups]
    moved: dict[str, list[Tensor]] = {name: [] for name in names}
    for step in range(N_STEPS):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * float(inputs["rates"][step])
        for name, p, _ in params:
            p.grad = inputs[f"gradient/{name}"][step].clone() if inputs[f"given/{name}"][step] else None
        optimizer.step()
        for name, p, _ in params:
            moved[name].append((p.detach() - inputs[name]).clone())
    return {name: torch.stack([steps[n - 1] for n in SHOWN_AFTER]) for name, steps in moved.items()}


def _given(name: str) -> Tensor:
    steps = torch.arange(N_STEPS)
    return steps % 2 == 0 if name == SOMETIMES else torch.full((N_STEPS,), name != NEVER)
