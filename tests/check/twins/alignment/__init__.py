"""Twins of alignment methods, from their papers. Each module may have tables MORE and REFUSED of the methods in it."""

import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from twins import Settings
from twins.alignment import pairs, policies

MODULES: list[ModuleType] = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
MORE: Settings = {name: found for m in MODULES for name, found in getattr(m, "MORE", {}).items()}
REFUSED: Settings = {name: found for m in MODULES for name, found in getattr(m, "REFUSED", {}).items()}


def refuses(name: str, options: Mapping[str, Any]) -> bool:
    """True of a setting among those of a part's options that it must refuse, as its options mean nothing together."""
    return (name in pairs.SOURCES and pairs.refuses(options)) or (
        name in policies.SOURCES and policies.refuses(options)
    )
