"""Whether a gradient is the slope of the loss, measured in float64: there nothing is lost to rounding."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from llmlab import attributes
from llmlab.check.learning import loss_function, parameter_gradients, require_gradients
from llmlab.check.subject import CheckFailed, NotApplicable, Subject, generator
from llmlab.model.model import Model
from llmlab.model.roles import parameters
from llmlab.slots import Loss

# How far all parameters of a role are moved: in float64 rounding makes of it 1e-16 / 1e-6 of a loss, its bend about 1e-6.
# The second tells a slope from noise.
STEPS = (1e-6, 1e-5)
RELATIVE_ERROR = 0.001  # of a gradient's length, by which a slope may be off; rounding in float32 makes 2e-5 of it
ABSOLUTE_ERROR = 1e-5  # the same for a gradient that is 0 but for rounding


def slope(subject: Subject) -> None:
    """The gradient is the slope of the loss: along a random direction in the parameters of each role."""
    require_gradients(subject)
    if any(attributes.of(module, attributes.EVERY, "estimates") for module in subject.model.modules()):
        raise NotApplicable("a part says that its gradient is an estimate of its own")
    loss = loss_function(subject, subject.model)()
    gradient = parameter_gradients(subject.model, loss._replace(aux={}).mean())
    exact = deepcopy(subject.model).double()
    by_role: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for path, parameter, role in parameters(exact):
        if (slope_of := gradient[path]) is not None:
            by_role.setdefault(role, []).append((parameter, slope_of.double()))
    unmeasured = []
    with in_float64(), torch.no_grad():
        measured = _LossProbe(exact, loss_function(subject, exact))
        for role_name, own in by_role.items():
            ways = [torch.randn(p.shape, generator=generator(3)) for p, _ in own]
            want = sum(float((g * way).sum()) for (_, g), way in zip(own, ways, strict=True))
            near = ABSOLUTE_ERROR + RELATIVE_ERROR * (
                abs(want) + math.sqrt(sum(float(g.square().sum()) for _, g in own))
            )
            moved = [step / math.sqrt(sum(way.numel() for way in ways)) for step in STEPS]
            got = measured.rise([p for p, _ in own], ways, moved[0])
            if got is not None and abs(got - want) <= near:
                continue
            again = measured.rise([p for p, _ in own], ways, moved[1])
            if got is None or again is None or not abs(got - again) <= near:
                unmeasured.append(role_name)
            else:
                raise CheckFailed(
                    f"along the parameters of the role {role_name} the loss rises by {got:.4g}, its gradient says {want:.4g}"
                )
    if unmeasured:
        raise NotApplicable(
            f"along {', '.join(unmeasured)} the loss has no slope: it jumps, as where tokens meet other experts, or is rounded"
        )


class _LossProbe:
    """A model's mean loss, and how it rises."""

    def __init__(self, model: Model, ask: Callable[[], Loss]):
        self.ask, self.routers = ask, model.routers()
        try:
            self.value, self.met = self._now()
        except RuntimeError as e:
            raise NotApplicable(f"it can't be computed in float64: {str(e).splitlines()[0]}") from None

    def rise(self, own: list[Tensor], ways: list[Tensor], step: float) -> float | None:
        """Along `ways`; None if a token meets other experts there."""
        before = [parameter.clone() for parameter in own]
        for parameter, way in zip(own, ways, strict=True):
            parameter.add_(way, alpha=step)
        value, met = self._now()
        for parameter, old in zip(own, before, strict=True):
            parameter.copy_(old)
        same = all(torch.equal(one, other) for one, other in zip(met, self.met, strict=True))
        return (value - self.value) / step if same else None

    def _now(self) -> tuple[float, list[Tensor]]:
        """The loss, and the experts that tokens meet."""
        met: list[Tensor] = []
        hooks = [r.register_forward_hook(lambda m, i, out: met.append(out[1])) for r in self.routers]
        loss = self.ask()
        for hook in hooks:
            hook.remove()
        return float(loss._replace(aux={}).mean()), met


@contextmanager
def in_float64() -> Iterator[None]:
    """Code that asks for float32, as norms, scores and losses do for the sake of half precision, gets float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Float64Mode():
            yield
    finally:
        torch.set_default_dtype(before)


class _Float64Mode(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            func = Tensor.double
        args = tuple(torch.float64 if x is torch.float32 else x for x in args)
        return func(*args, **{k: torch.float64 if x is torch.float32 else x for k, x in (kwargs or {}).items()})
