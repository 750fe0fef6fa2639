"""Gradient check: gradients against finite differences of the loss, computed in float64.

torch.autograd.gradcheck perturbs one number at a time, which takes two forwards for each parameter of a model; a random
direction through all parameters of a role needs one, and a wrong gradient has a component along it almost surely.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from llmlab import attributes
from llmlab.check.learning import loss_function, parameter_gradients, require_gradients, require_scale
from llmlab.check.subject import CheckFailed, NotApplicable, Subject, generator
from llmlab.config import learned
from llmlab.model.model import Model
from llmlab.model.roles import parameters
from llmlab.slots import Loss

# Distance that all parameters of a role are moved together. The forward difference is off by about 1e-16 / 1e-6 = 1e-10 of
# the loss by float64 rounding, and by 1e-6 times the curvature. The second step tells a slope from noise: where both steps
# give one value that is not the gradient's, the gradient is wrong.
STEPS = (1e-6, 1e-5)
# As a share of the gradient's norm: the model's own gradient is float32, and off by 2e-5 of it.
RELATIVE_ERROR = 0.001
ABSOLUTE_ERROR = 1e-5  # for a gradient that is 0 but for rounding


def slope(subject: Subject) -> None:
    """The gradient is the slope of the loss: along a random direction in the parameters of each role."""
    require_gradients(subject)
    require_scale(subject)
    own = learned.entry(subject.composed.cfg).attribute("estimates")
    if own or any(attributes.get(module, attributes.EVERY, "estimates") for module in subject.model.modules()):
        raise NotApplicable("a part says that its gradient is an estimate of its own")
    loss = loss_function(subject, subject.model)()
    gradient = parameter_gradients(subject.model, loss._replace(aux={}).mean())
    exact = deepcopy(subject.model).double()
    by_role: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for path, parameter, role in parameters(exact):
        if (own_gradient := gradient[path]) is not None:
            by_role.setdefault(role, []).append((parameter, own_gradient.double()))
    unmeasured: list[str] = []
    # Before float64 begins: the first values of a companion are drawn in float32.
    exact_loss = loss_function(subject, exact)
    with in_float64(), torch.no_grad():
        probe = _LossProbe(exact, exact_loss)
        # One for all: parameters of equal shape must not move alike, or two wrong gradients could cancel.
        chance = generator(3)
        for role_name, own in by_role.items():
            directions = [torch.randn(p.shape, generator=chance) for p, _ in own]
            want = sum(float((g * d).sum()) for (_, g), d in zip(own, directions, strict=True))
            # By the gradient's norm too: the slope along a random direction may be near 0 where the gradient is large.
            tolerance = ABSOLUTE_ERROR + RELATIVE_ERROR * (
                abs(want) + math.sqrt(sum(float(g.square().sum()) for _, g in own))
            )
            moved = [step / math.sqrt(sum(d.numel() for d in directions)) for step in STEPS]
            got = probe.slope([p for p, _ in own], directions, moved[0])
            if got is not None and abs(got - want) <= tolerance:
                continue
            again = probe.slope([p for p, _ in own], directions, moved[1])
            # `not <=`, as every comparison with NaN is false.
            if got is None or again is None or not abs(got - again) <= tolerance:
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
    """The mean loss of a model, and its slope by finite differences."""

    def __init__(self, model: Model, compute: Callable[[], Loss]):
        self.compute, self.routers = compute, model.routers()
        try:
            self.value, self.experts = self._now()
        # An operation that has no float64 ("... not implemented for 'Double'") raises a RuntimeError too.
        except RuntimeError as e:
            raise NotApplicable(f"it can't be computed in float64: {str(e).splitlines()[0]}") from None

    def slope(self, parameters: list[Tensor], directions: list[Tensor], step: float) -> float | None:
        """The slope along `directions`; None if a step sends a token to other experts, where the loss jumps."""
        # Kept and copied back: adding a step and taking it off again rounds, and the errors of all roles would add up.
        before = [parameter.clone() for parameter in parameters]
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.add_(direction, alpha=step)
        value, experts = self._now()
        for parameter, old in zip(parameters, before, strict=True):
            parameter.copy_(old)
        same = all(torch.equal(one, other) for one, other in zip(experts, self.experts, strict=True))
        return (value - self.value) / step if same else None

    def _now(self) -> tuple[float, list[Tensor]]:
        """The loss, and the experts that each router chose."""
        experts: list[Tensor] = []
        hooks = [
            r.register_forward_hook(lambda module, args, routing: experts.append(routing[1])) for r in self.routers
        ]
        loss = self.compute()
        for hook in hooks:
            hook.remove()
        return float(loss._replace(aux={}).mean()), experts


@contextmanager
def in_float64() -> Iterator[None]:
    """Context in which code that asks for float32 gets float64.

    Norms, scores and losses compute in float32 whatever they are given, for the sake of bfloat16: model.double() alone would
    leave their rounding, 1e-7, in a difference that is divided by 1e-6.
    """
    before = torch.get_default_dtype()
    # Tensors made without a dtype (torch.ones(2), torch.tensor(0.5)) have none that the mode below could replace.
    torch.set_default_dtype(torch.float64)
    try:
        with _Float64Mode():
            yield
    finally:
        torch.set_default_dtype(before)


class _Float64Mode(TorchFunctionMode):
    """Replaces float32 in the arguments of every torch function; a TorchFunctionMode also sees calls on plain tensors."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        # x.float() has no dtype among its arguments, so that the line below would leave it.
        if func is Tensor.float:
            func = Tensor.double
        # `is`, as there is one object for each dtype, while == with a tensor compares its elements.
        args = tuple(torch.float64 if x is torch.float32 else x for x in args)
        return func(*args, **{k: torch.float64 if x is torch.float32 else x for k, x in (kwargs or {}).items()})
