"""A model without its adapter, or the delta of its token table, that computes the same."""

from __future__ import annotations

from dataclasses import replace

from llmlab.config.spec import ModelSpec
from llmlab.model import adapters, build, split_table
from llmlab.model.model import Model


def without(spec: ModelSpec) -> ModelSpec:
    """The model as it is once it is merged."""
    return replace(adapters.without(spec), table_delta=False)


def merge(model: Model) -> Model:
    """The model on the CPU with its adapter in the weights of its linears and one token table; the model itself where it is
    so anyway."""
    if (spec := without(model.spec)) == model.spec:
        return model
    found = build.assemble(spec)
    build.materialise(found)
    found.load_state_dict(split_table.folded(adapters.merged(model.state_dict(), model.spec)))
    return found.train(model.training)
