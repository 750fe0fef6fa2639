"""Building a part at a setting, with weights and inputs that follow from their names alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor, nn

from llmlab import registry
from llmlab.check.reference import noise
from llmlab.check.twins.settings import Setting
from llmlab.model.roles import walk
from llmlab.modules import Role
from llmlab.sizes import AttentionTraits, FFNTraits, MoETraits, Sizes
from llmlab.twins import Given

if TYPE_CHECKING:
    from llmlab.twins import Arrays

M = TypeVar("M", bound=nn.Module)

# Sizes differ as far as they may, so that a part which confuses two of them fails.
SIZES = Sizes(
    dim=24,
    n_layers=2,
    n_heads=4,
    n_kv_heads=None,
    head_dim=8,
    ffn_dim=40,
    vocab_size=61,
    max_positions=48,
    norm_eps=1e-3,
    attention=AttentionTraits(),
    ffn=FFNTraits(),
    moe=MoETraits(n_experts=6, per_token=3, ffn_dim=20),
    rotary_dim=8,
    embed_dim=24,
)


@dataclass(frozen=True)
class Observed:
    """Outputs of a part by name, and what it was given, which its twin is given too."""

    given: Given
    outputs: Arrays
    tolerance: float = 1e-5  # of an output's largest value: many parts compute in float32 whatever they are given


_TYPE = ContextVar("_TYPE", default=torch.float64)


@contextmanager
def computed_in(dtype: torch.dtype) -> Iterator[None]:
    """Weights and inputs are of this type in here, so that a part which computes otherwise by type is asked for that too."""
    token = _TYPE.set(dtype)
    try:
        yield
    finally:
        _TYPE.reset(token)


def sizes_of(setting: Setting) -> Sizes:
    """The sizes of every observation, with those of a setting."""
    sizes = SIZES
    for key, value in setting.sizes.items():
        group, _, name = key.rpartition(".")
        sizes = sizes.but(**{group: replace(getattr(sizes, group), **{name: value})} if group else {name: value})
    return sizes


def options_of(setting: Setting) -> dict[str, Any]:
    """All options of the part, defaults included."""
    entry = registry.index()[setting.slot, setting.name]
    return {**{key: option.default for key, option in entry.options.items()}, **setting.options}


def build(setting: Setting, *args: Any) -> Any:
    """The part as the framework builds it, on the meta device; a module is filled by `fill` and in eval mode."""
    with torch.device("meta"):
        part = registry.load(setting.slot, setting.name, dict(setting.options))(*args)
    return fill(part.to_empty(device="cpu")) if isinstance(part, nn.Module) else part


@torch.no_grad()
def fill(module: M) -> M:
    """Fill a module with values that follow from each tensor's path; returns it in eval mode.

    They lie around the tensor's constant (a norm's weight around 1) and differ from it, so that each tensor has an effect.
    """
    owners = dict(module.named_modules())
    for path, tensor in [*module.named_parameters(), *module.named_buffers()]:
        owner, _, name = path.rpartition(".")
        constant = getattr(owners[owner], "constants", {}).get(name, 0.0)
        if tensor.is_floating_point():
            tensor.copy_(constant + 0.4 * noise(path, tensor.shape))
    return module.to(_TYPE.get()).eval()


def given(setting: Setting, inputs: Mapping[str, Tensor], module: object = None, sizes: Sizes | None = None) -> Given:
    """All that a twin is given."""
    weights = dict(module.state_dict()) if isinstance(module, nn.Module) else {}
    return Given(options_of(setting), sizes or sizes_of(setting), arrays(inputs), arrays(weights))


def arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """The tensors as arrays, floats in float64."""
    return {key: (t.double() if t.is_floating_point() else t).detach().numpy().copy() for key, t in tensors.items()}


def uniform(name: str, *shape: int) -> Tensor:
    """Values in [-1, 1) that follow from the name alone, in float64 unless it is `computed_in` another type."""
    return noise(name, torch.Size(shape)).to(_TYPE.get())


def roles(module: nn.Module) -> np.ndarray:
    """(parameters,): the number of each parameter's role in `llmlab.slots.Role`, by path in alphabetical order."""
    known = get_args(Role)
    return np.array([known.index(role) for _, role in sorted((path, role) for path, *_, role in walk(module))])
