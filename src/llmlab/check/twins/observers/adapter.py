"""Observer of adapters: a linear, adapted by a module that has learnt.

Inputs: `x` (2, 5, 6), `weight` (7, 6) and `bias` (7,) of the linear, `cotangent` (2, 5, 7), `draws` (of
dropout). Weights: those of the module.
Outputs:
- `adapted`, 1 for each role of ROLES whose linears it adapts; the rest is of the first of them. `begins`, the bound of first
  values of each parameter, by path in alphabetical order, and around what they lie; -1: the init says.
- `plain` and `biased`, what comes out for x of a linear without and with a bias, if it adapts such; `merged`, the one weight.
- `slope/NAME` of `x` and of each parameter: of the sum of what comes out times `cotangent`, with a bias if it may have one.
- `dropped/mean` and `dropped/square`, of what comes out for x[0, 0] in training, and of its square.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmlab.check.twins.observers.observed import Observed, build, fill, given, uniform
from llmlab.check.twins.settings import Setting
from llmlab.modules import Linear, Role

ROLES: tuple[Role, ...] = get_args(Role)
N_IN, N_OUT, N_DRAWS = 6, 7, 4000


def observe(setting: Setting) -> Observed:
    part = build(setting)
    adapted = [part(Linear(N_IN, N_OUT, role=role)) is not None for role in ROLES]
    role = ROLES[adapted.index(True)]
    x, cotangent = uniform("x", 2, 5, N_IN), uniform("cotangent", 2, 5, N_OUT)
    outputs: dict[str, np.ndarray] = {"adapted": np.array(adapted, np.float64)}
    module: nn.Module | None = None
    for name, bias in (("plain", False), ("biased", True)):
        linear = fill(Linear(N_IN, N_OUT, bias, role=role))
        with torch.device("meta"):
            made = part(linear)
        if made is None:
            continue
        module = fill(made.to_empty(device="cpu"))
        at = x.clone().requires_grad_()
        y = module(at, linear(_read(module, at)), linear)
        (y * cotangent).sum().backward()
        outputs[name] = y.detach().numpy()
        slopes = {"x": at.grad, **{path: p.grad for path, p in module.named_parameters()}}
        outputs |= {f"slope/{key}": cast(Tensor, grad).numpy() for key, grad in slopes.items()}
        outputs |= _dropped(module, linear, x[0, 0])
    assert module is not None
    outputs["begins"] = np.array([_begins(module, path) for path, _ in sorted(module.named_parameters())])
    outputs["merged"] = part.merged(linear.weight.detach(), dict(module.state_dict())).numpy()
    inputs: Mapping[str, Any] = {
        "x": x,
        "weight": linear.weight,
        "bias": fill(Linear(N_IN, N_OUT, True, role=role)).bias,
        "cotangent": cotangent,
        "draws": torch.tensor(N_DRAWS),
    }
    return Observed(given(setting, inputs, module), outputs)


def _read(module: nn.Module, x: Tensor) -> Tensor:
    """What the linear reads of x."""
    before = getattr(module, "before", None)
    return x if before is None else before(x)


def _begins(module: nn.Module, path: str) -> list[float]:
    owner, _, name = path.rpartition(".")
    of = module.get_submodule(owner)
    constants, bounds = getattr(of, "constants", {}), getattr(of, "uniform", {})
    return [bounds.get(name, 0.0 if name in constants else -1.0), constants.get(name, 0.0 if name in bounds else -1.0)]


@torch.no_grad()
def _dropped(module: nn.Module, linear: Linear, x: Tensor) -> dict[str, np.ndarray]:
    rows = x.expand(N_DRAWS, -1)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        y = module.train()(rows, F.linear(_read(module, rows), linear.weight, linear.bias), linear)
    module.eval()
    return {"dropped/mean": y.mean(0).numpy(), "dropped/square": y.square().mean(0).numpy()}
