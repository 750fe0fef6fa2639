"""Training, for as long as it takes to see that it can be."""

from __future__ import annotations

import torch

from llmlab.check.learning import objective, samples
from llmlab.check.subject import Subject, Wrong, wake
from llmlab.model.roles import parameters

STEPS = 2


def trains(subject: Subject) -> None:
    """Two steps of its own objective and optimizer: losses are finite, and most parameters move."""
    from llmlab.training.recipe import chosen

    kernel = subject.spec.kernel.factory()()
    if hasattr(kernel, "check_training"):
        kernel.check_training("cpu", "32-true")
    learnt, batch = objective(subject), samples(subject)
    model = wake(subject.fresh()).train()
    optimizer = chosen(subject.composed.cfg, "optimizer")().build(parameters(model))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(STEPS):
        loss = learnt.loss(model, batch)
        total = loss.sum / loss.count + (0.0 if loss.aux is None else loss.aux)
        if not torch.isfinite(total):
            raise Wrong(f"the loss of step {step + 1} is {float(total)}")
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    stayed = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    if 2 * len(stayed) > len(before):
        raise Wrong(
            f"{len(stayed)} of {len(before)} parameters have not moved in {STEPS} steps, {stayed[0]} among them"
        )
