"""The check that a model trains: two steps of its own objective and optimizer."""

from __future__ import annotations

import torch

from llmlab.check.learning import allowed_without_gradient, loss_function
from llmlab.check.refusal import untrainable
from llmlab.check.subject import CheckFailed, Subject, randomise
from llmlab.errors import UserError
from llmlab.model.roles import parameters

STEPS = 2


def trains(subject: Subject) -> None:
    """Two steps of its own objective and optimizer: losses are finite, and every parameter moves that a batch reaches."""
    from llmlab.training.recipe import part_factory

    if why := untrainable(subject.spec.kernel):
        raise UserError(why)
    model = randomise(subject.fresh()).train()
    value = loss_function(subject, model)
    optimizer = part_factory(subject.composed.cfg, "optimizer")().build(parameters(model))
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0  # decay alone would move a parameter that gets no gradient
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(STEPS):
        loss = value()
        total = loss.mean()
        if not torch.isfinite(total):
            raise CheckFailed(f"the loss of step {step + 1} is {float(total)}")
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    may = allowed_without_gradient(subject)
    stayed = [name for name, p in model.named_parameters() if name not in may and torch.equal(p, before[name])]
    if stayed:
        raise CheckFailed(
            f"{len(stayed)} of {len(before)} parameters have not moved in {STEPS} steps, {stayed[0]} among them"
        )
