"""A model without its adapter that computes the same."""

from __future__ import annotations

from llmlab.model import adapters, build
from llmlab.model.model import Model


def merge(model: Model) -> Model:
    """The model on the CPU with its adapter in the weights of its linears; the model itself where it has none."""
    if model.spec.adapter is None:
        return model
    found = build.assemble(adapters.without(model.spec))
    build.materialise(found)
    found.load_state_dict(adapters.merged(model.state_dict(), model.spec))
    return found.train(model.training)
