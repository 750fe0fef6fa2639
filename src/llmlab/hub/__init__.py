"""Hugging Face checkpoints in and out: one table a layout, one entry a family."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmlab.hub.load import load_hf
    from llmlab.hub.save import save_hf

__all__ = ["load_hf", "save_hf"]


def __getattr__(name: str) -> object:
    """Lazy import of `load_hf` and `save_hf`: both need torch, which takes seconds to import."""
    # AttributeError, which `hasattr`, `from ... import` and help() ask for (PEP 562); a KeyError would escape them.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{name.removesuffix('_hf')}"), name)
