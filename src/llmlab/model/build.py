"""Assemble on the meta device, materialise, and fill every parameter from a generator keyed by (seed, path)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmlab.model.layout import ModelSpec
from llmlab.model.model import Model
from llmlab.model.roles import walk
from llmlab.seeds import key


def assemble(spec: ModelSpec) -> Model:
    """The model without memory: every parameter on the meta device."""
    with torch.device("meta"):
        return Model(spec)


def materialise(model: nn.Module, device: torch.device | str = "cpu") -> None:
    """Give meta tensors memory on `device`, unfilled."""
    model._apply(lambda t: torch.empty_like(t, device=device) if t.is_meta else t)


@torch.no_grad()
def initialise(model: Model, seed: int) -> None:
    """First values of every parameter, the same under any strategy, and in two variants where they share the part.

    Each is drawn whole, in float32 on the CPU, from a generator seeded by (seed, path): constants as the module states
    them, biases 0, the rest by the init part from the parameter's role. Persistent buffers become 0.
    """
    init = model.spec.init.factory()()
    for path, module, name, parameter, role in walk(model):
        value = torch.empty(parameter.shape, dtype=torch.float32)
        constants = getattr(module, "constants", {})
        if name in constants:
            value.fill_(constants[name])
        elif role == "bias":
            value.zero_()
        else:
            parts = path.split(".")
            sizes = model.stacks[parts[1]].sizes if parts[0] == "stacks" else model.sizes
            init.fill(value, role, sizes, torch.Generator().manual_seed(key(seed, path)))
        _put(parameter, value)
    for buffer in model.buffers():
        buffer.zero_()


def _put(parameter: Tensor, value: Tensor) -> None:
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(parameter, DTensor):  # a shard keeps its piece of the whole value; no communication
        whole = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.to_local().copy_(whole.to_local())
    else:
        parameter.copy_(value)


def build_model(spec: ModelSpec, seed: int = 1) -> Model:
    """A model on the CPU, ready to run."""
    model = assemble(spec)
    materialise(model)
    initialise(model, seed)
    return model
