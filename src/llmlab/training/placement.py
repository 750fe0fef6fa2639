"""Choices of how a model is computed under any strategy: its precision, activation checkpointing, compiled layers.

Nothing here changes a parameter's path. A layer's `forward` is replaced on the instance; its class stays as it is.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from llmlab.config import devices
from llmlab.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from llmlab.model.model import Model
    from llmlab.model.stack import Layer

# What products are computed in, by `precision`.
COMPUTED = {
    "32-true": torch.float32,
    "bf16-mixed": torch.bfloat16,
    "bf16-true": torch.bfloat16,
    "16-mixed": torch.float16,
}


@dataclass(frozen=True)
class Placement:
    """dtype: of the parameters."""

    activation_checkpointing: bool = False
    compile: bool = False
    dtype: torch.dtype = torch.float32

    @classmethod
    def from_config(cls, cfg: DictConfig) -> Placement:
        # DeepSpeed keeps float32 weights beside bfloat16 ones, so it converts the model itself.
        half = cfg.precision == "bf16-true" and not cfg.strategy.name.startswith("zero")
        options = cfg.placement
        return cls(options.activation_checkpointing, options.compile, torch.bfloat16 if half else torch.float32)

    def apply(self, model: Model) -> None:
        """To a model in place, on the meta device or not, before a strategy shards it."""
        if self.dtype != torch.float32:
            # Parameters alone: buffers hold counts and biases of routers, which bfloat16 would round away.
            for parameter in model.parameters():
                # By `.data`: a tied parameter stays one object, and roles and marks that hang on it stay.
                parameter.data = parameter.data.to(self.dtype)
        for layer in cast("list[Layer]", [layer for stack in model.all_stacks() for layer in stack.layers]):
            for module in traceable(layer) if self.compile else ():
                # The method and not the module: torch.compile(module) wraps it, and paths would begin with _orig_mod.
                module.forward = torch.compile(module.forward)
            if self.activation_checkpointing:
                layer.forward = functools.partial(_recomputed, layer.forward)  # type: ignore[method-assign,call-arg]


def traceable(layer: Layer) -> list[nn.Module]:
    """The modules of a layer that are one graph each: not the dispatch to experts, whose sizes depend on the data."""
    if not layer.routed:
        return [layer]
    return [m for m in (layer.attention, layer.cross_attention, cast("Any", layer.ffn).shared) if m is not None]


P = ParamSpec("P")
R = TypeVar("R")


def _recomputed(forward: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Activation checkpointing (Chen et al. 2016, arXiv:1604.06174): what is inside is computed again in the backward, with
    the same random numbers."""
    if not torch.is_grad_enabled():  # in a validation nothing is kept anyway
        return forward(*args, **kwargs)
    # The reentrant variant takes no keyword arguments, and gives no gradient where no input has one, as under a frozen
    # embedding; this one also stops as soon as all that the backward needs is there.
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)  # type: ignore[arg-type]


def precision(cfg: DictConfig) -> dict[str, Any]:
    """Arguments of Lightning's Trainer for `precision`."""
    if cfg.precision == "bf16-true" and not cfg.strategy.name.startswith("zero"):
        from llmlab.training.strategies.portable import BFloat16

        return {"plugins": [BFloat16()]}
    return {"precision": cfg.precision}


def check(cfg: DictConfig, accelerator: str) -> None:
    """UserError in a line for what can't be done on `accelerator`, cpu or gpu."""
    if cfg.precision == "16-mixed" and accelerator == "cpu":
        raise UserError(devices.NEEDS_GPU)
    if cfg.placement.compile and accelerator == "cpu":
        # The one that Inductor takes (`torch._inductor.config.cpp.cxx`, torch 2.13). Where it is missing Inductor raises
        # InvalidCxxCompiler in the first forward.
        compilers = [os.environ["CXX"]] if os.environ.get("CXX") else ["clang++" if sys.platform == "darwin" else "g++"]
        if not any(shutil.which(c.split()[0]) for c in compilers):
            raise UserError(
                f"placement.compile=true: torch.compile needs a C++ compiler, but {' or '.join(compilers)} is not found"
            )
