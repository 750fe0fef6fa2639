"""Entries of the hub by the `model_type` of config.json. A family is a module here with a list ENTRIES."""

from __future__ import annotations

import importlib
import pkgutil

from llmlab.hub.entry import Entry


def entries() -> dict[str, Entry]:
    # All of them: 30 ms for 46 types, and no list of families that a new file would have to be added to.
    modules = (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    return {name: e for module in modules for e in getattr(module, "ENTRIES", ()) for name in e.model_types}
