"""Assemble on the meta device, materialise, and fill every parameter from a generator keyed by (seed, path)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from llmlab.config.spec import ModelSpec
from llmlab.errors import UserError
from llmlab.model import adapters, split_table
from llmlab.model.model import Model, Shared
from llmlab.model.roles import walk
from llmlab.modules import SplitTable, Table
from llmlab.seeds import key

T = TypeVar("T")


def assemble(spec: ModelSpec, shared: Shared | None = None) -> Model:
    """The model without memory: every parameter on the meta device. UserError for sizes that no tensor can have.

    shared: modules of another model whose tables it uses.
    """
    try:
        with torch.device("meta"):
            return Model(spec, shared)
    except RuntimeError as e:
        # torch has no exception type of its own for this, so its message decides.
        if found := re.search(r"Storage size calculation overflowed with sizes=\[([\d, ]+)\]", str(e)):
            shape = " x ".join(f"{int(n):,}" for n in found[1].split(","))
            raise UserError(f"the model would have a tensor of {shape}, which is more than torch can count") from None
        raise


def materialise(model: nn.Module, device: torch.device | str = "cpu") -> None:
    """Give meta tensors memory on `device`, unfilled. Others keep their values, which Module.to_empty would drop."""
    model._apply(lambda t: torch.empty_like(t, device=device) if t.is_meta else t)


@torch.no_grad()
def initialise(model: Model, seed: int, prefix: str = "", rows: tuple[Tensor, Tensor] | None = None) -> None:
    """First values of every parameter, the same under any strategy, and in two variants where they share the part.

    Each is drawn whole, in float32 on the CPU, from a generator seeded by (seed, path): constants and what is `uniform` within
    bounds as the module states them, biases 0, the rest by the init part from the parameter's role. Persistent buffers become
    0. prefix: what stands before the paths, so that two models of a run do not begin alike. rows: (ids, vectors) that its token
    tables begin with.
    """
    begun = token_tables(model) if rows is not None else {}
    init = model.spec.init.factory()()
    for path, module, name, parameter, role in walk(model):
        # On the CPU: a CUDA generator gives other numbers for the same seed. Whole, so that sharding changes no value.
        value = torch.empty(_shape(parameter), dtype=torch.float32, device="cpu")
        constants, uniform = getattr(module, "constants", {}), getattr(module, "uniform", {})
        if name in constants:
            value.fill_(constants[name])
        elif name in uniform:
            value.uniform_(-uniform[name], uniform[name], generator=_generator(seed, prefix + path))
        elif role == "bias":
            value.zero_()
        else:
            parts = path.split(".")
            # The sizes of the stack: encoder and decoder may differ in width and depth, by which inits scale.
            sizes: Any = model.stacks[parts[1]].sizes if parts[0] == "stacks" else model.sizes
            if isinstance(module, Table | SplitTable):
                sizes = sizes.but(gain=module.gain)
            drawn_as = path.removesuffix(name) + getattr(module, "drawn_as", {}).get(name, name)
            init.fill(value, role, sizes, _generator(seed, prefix + drawn_as))
        if rows is not None and path in begun:
            value[rows[0]] = rows[1]
        _put(parameter, value)
    # empty_like leaves whatever the memory held, and BART's bias on the logits and a router's on its scores begin at 0.
    for buffer in model.buffers():
        buffer.zero_()
    spell(model, str)


def spell(model: nn.Module, text: Callable[[int], str]) -> None:
    """Tell parts that read the characters of tokens what each id stands for; without a tokenizer its number."""
    for module in model.modules():
        if (own := getattr(module, "spell", None)) is not None:
            own(text)


def token_tables(model: Model) -> dict[str, nn.Parameter]:
    """The tables of token vectors of a model's stacks by path, but for those that are another stack's or another model's."""
    own = {id(split_table.base(stack.embedding)) for stack in model.all_stacks()}
    return {path: parameter for path, _, _, parameter, _ in walk(model) if id(parameter) in own}


def _generator(seed: int, path: str) -> torch.Generator:
    return torch.Generator().manual_seed(key(seed, path))


@torch.no_grad()
def load(model: nn.Module, weights: Mapping[str, Tensor], *, begins: bool = False) -> None:
    """Every parameter and persistent buffer from whole tensors, wherever the model's lie. UserError if one is missing,
    left over, or of another shape. begins: heads that only one side has stay as they are, or are left out, and an adapter
    that the weights lack stays as it is."""
    # keep_vars: the parameters themselves, with their attributes (`put_whole`); detached copies by default.
    own: Mapping[str, Tensor] = model.state_dict(keep_vars=True)
    if begins:
        own, weights = shared(own, weights)
    if wrong := mismatches(own, weights):
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"the weights do not fit this model: {'; '.join(wrong[:3])}{more}")
    for name, tensor in own.items():
        _put(tensor, weights[name])


def shared(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a model and of the weights that it begins with, without heads of which the other has nothing: those of
    another objective, as a classifier has another than the masked language model that it begins from."""

    def role(name: str) -> str | None:
        return name.split(".")[1] if name.startswith("heads.") else None

    if not adapters.is_adapted(weights):
        own = {n: t for n, t in own.items() if adapters.MARK not in n}
    both = {role(n) for n in own} & {role(n) for n in weights} | {None}
    return {n: t for n, t in own.items() if role(n) in both}, {n: t for n, t in weights.items() if role(n) in both}


def mismatches(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """A phrase for each tensor of `weights` that is missing, left over or of another shape in a model with tensors `own`."""
    return [
        *(f"{n} is missing there" for n in own if n not in weights),
        *(f"{n} is not in this model" for n in weights if n not in own),
        *(
            f"{n} is {tuple(weights[n].shape)} there and {tuple(_shape(own[n]))} here"
            for n in own
            if n in weights and weights[n].shape != _shape(own[n])
        ),
    ]


def like(parameter: Tensor, value: T) -> T:
    """A whole tensor sharded as the parameter is, where it has the parameter's shape; anything else as it is."""
    # Deferred: 0.4 s to import, on one device for nothing.
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not (isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape):
        return value
    whole = value.to(parameter.device)
    # src_data_rank=None: each rank takes its piece of its own copy. By default rank 0 would scatter its values to the others.
    return cast("T", distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None))


def _shape(tensor: Tensor) -> torch.Size:
    return getattr(tensor, "whole_shape", tensor.shape)


def _put(tensor: Tensor, value: Tensor) -> None:
    """A whole value into a tensor. One whose values lie elsewhere (ZeRO) says its `whole_shape` and has `put_whole`."""
    from torch.distributed.tensor import DTensor

    if hasattr(tensor, "put_whole"):
        tensor.put_whole(value)
    elif isinstance(tensor, DTensor):
        tensor.to_local().copy_(cast(DTensor, like(tensor, value)).to_local())
    else:
        tensor.copy_(value)


def build_model(spec: ModelSpec, seed: int = 1) -> Model:
    """A model on the CPU, ready to run."""
    model = assemble(spec)
    materialise(model)
    initialise(model, seed)
    return model
