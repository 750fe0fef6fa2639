"""Observer of routers, alone and with experts. A part that is `dense` has the output `dense` only.

Weights: `router.PATH` of the part; `experts.up.weight` (E, F, D) and `experts.down.weight` (E, D, F) of experts, which are
down(tanh(up(x))), and under model.ffn.bias `experts.up.bias` (E, F) and `experts.down.bias` (E, D); the same under `shared`,
without E, of shared experts; and `shared_gate.weight` (1, D).

Inputs: `x` (n, D); masks (n,) of its tokens: `valid`, which are not padding, `alone`, one token, and `none`, no token; `other`
(5, D) with `other_valid` (5,), the tokens of another rank; `far` (2, D), where all logits of the first parameter of shape
(E, D) are far below 0; `load` (E,), tokens that came to each expert.

Outputs. A table of weights has each token's weight at each expert that it visits, and -1 at others.
- Tables: `weights` (n, E) of `x`; `padded` (n / 2, E) of its first tokens, called with `valid`; `autocast` (2, E) of its first
  two, under autocast to bfloat16.
- `far` (2, E): log10(weight + 1e-9) of `far`, 1 where a token does not go; `far_padded`: the same where only the second token
  is valid; `far_loss`: log10 of the auxiliary loss of both.
- Auxiliary losses, left out where there is none: `loss` of all tokens of `x`; `padded_loss`, `alone_loss` and `none_loss` with
  the masks `valid`, `alone` and `none`; `ranks_loss` of the `valid` and `other_valid` tokens of two ranks.
- The mixture, called with `valid`: `y` (2, n / 2, 3), the last three values of each token; `load` (E,), tokens that come to
  each expert, and `unpadded_load` without `valid`; `float32` (D,): the last token's y computed in float32; `bfloat16`: 1 if
  y is rounded to it under autocast; `training`: y in training mode, only where model.ffn.dropout is 1; `dropouts` (2,):
  dropout on what `up` and `down` of the experts read.
- `slopes` (1 or 2,), where a parameter has the shape (E, D): how the sum of `y` and the loss rise, with `valid`, as the first
  such parameter moves along `towards` (E, D).
- `roles`: numbers of the roles of the parameters; `flops` of n tokens, if the part declares its cost; `moved.PATH`: the change
  of each buffer by `after_step(load)`; `leaks`; `per_token`: experts that a token visits on average.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llmlab import attributes, registry
from llmlab.check.twins.observers.observed import (
    Observed,
    arrays,
    fill,
    given,
    options_of,
    roles,
    sizes_of,
    uniform,
)
from llmlab.check.twins.settings import Setting
from llmlab.model.experts import MixtureOfExperts
from llmlab.slots import Choice, Routing
from llmlab.twins import Given

N = 8  # tokens


class _Expert(nn.Module):
    """down(tanh(up(x)))"""

    def __init__(self, dim: int, ffn_dim: int, linear: Callable[..., nn.Module]):
        super().__init__()
        self.up = linear(dim, ffn_dim, role="ffn_in")
        self.down = linear(ffn_dim, dim, role="ffn_out")

    def forward(self, x: Tensor, groups: Tensor | None = None) -> Tensor:
        return self.down(torch.tanh(self.up(x, groups)), groups)


@torch.no_grad()
def observe(setting: Setting) -> Observed:
    sizes = sizes_of(setting)
    if "sees_all" not in setting.sizes:
        sizes = sizes.but(sees_all=True)
    part = registry.load("moe", setting.name, dict(setting.options))
    if attributes.get(part.func, "moe", "dense"):
        return Observed(Given(options_of(setting), sizes, {}, {}), {"dense": np.ones(1)})
    with torch.device("meta"):
        mixture = MixtureOfExperts(sizes, part, _Expert)
    mixture = fill(mixture.to_empty(device="cpu"))
    inputs = _inputs(sizes.dim, mixture)
    x = inputs["x"]
    router: Any = mixture.router
    n_experts = sizes.moe.n_experts
    routed = {"loss": router(x, None)}
    routed.update((f"{key}_loss", router(x, inputs[mask])) for key, mask in KEPT.items())
    with torch.autocast("cpu", torch.bfloat16):
        autocast = router(x.bfloat16(), None)
    far = router(inputs["far"], None)
    far_padded = router(inputs["far"], torch.tensor([False, True]))
    slopes = {"slopes": _slopes(mixture, inputs)} if "towards" in inputs else {}
    outputs = {
        **slopes,
        "weights": visits(routed["loss"], N, n_experts),
        "padded": visits(routed["padded_loss"], N, n_experts)[: N // 2],
        "autocast": visits(autocast, N, n_experts)[:2],
        "far": _logarithm(visits(far, 2, n_experts)),
        "far_padded": _logarithm(visits(far_padded, 2, n_experts)),
        **{key: routing.loss for key, routing in routed.items() if routing.loss is not None},
        **_mixed(mixture, inputs, sizes.ffn.dropout == 1.0),
        "leaks": torch.tensor(float(attributes.get(router, "moe", "leaks"))),
        "per_token": torch.tensor(float(mixture.per_token)),
    }
    if far.loss is not None:
        outputs["far_loss"] = far.loss.log10()
    if hasattr(router, "cost"):
        outputs["flops"] = torch.tensor(router.cost(N, N).flops)
    seen = given(setting, inputs, mixture, sizes)
    if hasattr(router, "after_step"):
        before = {name: buffer.clone() for name, buffer in router.named_buffers()}
        router.after_step(inputs["load"])
        outputs.update((f"moved.{name}", buffer - before[name]) for name, buffer in router.named_buffers())
    return Observed(seen, {**arrays(outputs), "roles": roles(mixture)})


KEPT = {"padded": "valid", "alone": "alone", "none": "none"}


def _inputs(dim: int, mixture: MixtureOfExperts) -> dict[str, Tensor]:
    n_experts = mixture.n_experts
    token = torch.arange(N)
    # Multiples of 1/64 below 4, which bfloat16 represents exactly. The name "x 16" is the seed: with it, ranking groups
    # by their best expert, their best two or their best three chooses different groups.
    x = ((2 * uniform("x 16", N, dim) + 0.3) * 64).round() / 64
    logits = torch.tensor([[-45.0], [-300.0]]) - torch.tensor([[1.0], [40.0]]) * torch.arange(n_experts)
    gates = [p.double() for p in _gates(mixture, dim)]
    far = logits.double() @ torch.linalg.pinv(gates[0]).T if gates else -100 * uniform("far", 2, dim)
    # The mean load is that of the first expert, whose bias must then stay.
    off = [0, *((-1) ** i * i for i in range(1, n_experts - 1))]
    load = 10 + torch.tensor([*off, -sum(off)])
    towards = {"towards": uniform("towards", n_experts, dim)} if gates else {}
    return {
        **towards,
        "x": x,
        "valid": token % 4 != 1,
        "alone": token == 5,
        "none": token < 0,
        "other": 2 * uniform("other", 5, dim),
        "other_valid": torch.arange(5) != 3,
        "far": far,
        "load": load,
    }


def _gates(mixture: MixtureOfExperts, dim: int) -> list[nn.Parameter]:
    return [p for p in mixture.router.parameters() if p.shape == (mixture.n_experts, dim)]


@torch.enable_grad()
def _slopes(mixture: MixtureOfExperts, inputs: dict[str, Tensor]) -> Tensor:
    gate = _gates(mixture, inputs["x"].shape[1])[0]
    y, aux = mixture(inputs["x"].view(2, N // 2, -1), inputs["valid"].view(2, N // 2))
    rising = [y[..., -3:].sum(), *([] if aux.loss is None else [aux.loss])]
    slopes = [
        torch.autograd.grad(value, gate, retain_graph=True, allow_unused=True)[0] if value.requires_grad else None
        for value in rising
    ]
    return torch.stack([gate.new_zeros(()) if s is None else (s * inputs["towards"]).sum() for s in slopes])


def visits(routing: Routing | Choice, n: int, n_experts: int) -> Tensor:
    """(n, E): the weight of each token at each expert, -1 where it does not go."""
    weights = torch.full((n, n_experts), -1.0, dtype=torch.float64)
    if isinstance(routing, Choice):
        weights.T.scatter_(1, routing.tokens, routing.weights.double())
    else:
        weights.scatter_(1, routing.experts, routing.weights.double())
    return weights


def _logarithm(weights: Tensor) -> Tensor:
    return torch.where(weights < 0, 1.0, (weights + 1e-9).log10())


def _mixed(mixture: MixtureOfExperts, inputs: dict[str, Tensor], dropped: bool) -> dict[str, Tensor]:
    """Outputs of the mixture."""
    x_BTD, valid_BT = inputs["x"].view(2, N // 2, -1), inputs["valid"].view(2, N // 2)
    mixture.total = torch.zeros_like  # sums over ranks, and must not be used in evaluation
    y, aux = mixture(x_BTD, valid_BT)
    up_down: Any = (mixture.experts.up, mixture.experts.down)
    outputs = {
        "y": y[..., -3:],
        "load": aux.tokens_per_expert,
        "unpadded_load": mixture(x_BTD, None)[1].tokens_per_expert,
        "dropouts": torch.tensor([linear.dropout for linear in up_down]),
    }
    sums: list[Tensor] = []
    mixture.train()
    mixture.total = lambda tensor: sums.append(tensor) or tensor  # type: ignore[func-returns-value]
    mixture(inputs["other"][None], inputs["other_valid"][None])
    of_other = iter(sums)
    mixture.total = lambda tensor: tensor + next(of_other)
    training, of_ranks = mixture(x_BTD, valid_BT)
    if dropped:
        outputs["training"] = training[..., -3:]
    if of_ranks.loss is not None:
        outputs["ranks_loss"] = of_ranks.loss
    mixture.eval().float()
    outputs["float32"] = mixture(x_BTD.float(), valid_BT)[0][-1, -1]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = mixture(x_BTD.float(), valid_BT)[0]
    outputs["bfloat16"] = (rounded == rounded.bfloat16()).all().double()
    mixture.double()
    return outputs
