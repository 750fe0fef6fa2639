"""llmlab: experiments on language models, put together from parts. Importing it loads neither torch nor Lightning."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from llmlab.api import build, compose
    from llmlab.hub import load_hf, save_hf

# By name, so that `__getattr__` (PEP 562) imports a module when it is first asked for.
_HOMES = {"build": "llmlab.api", "compose": "llmlab.api", "load_hf": "llmlab.hub", "save_hf": "llmlab.hub"}

__all__ = ["build", "compose", "load_hf", "save_hf"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'llmlab' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
