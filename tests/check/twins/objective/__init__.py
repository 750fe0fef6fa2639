"""Twins of objectives, from their papers. Each module may have tables MORE and REFUSED of the objectives in it."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from twins import Settings

MODULES: list[ModuleType] = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
MORE: Settings = {name: found for m in MODULES for name, found in getattr(m, "MORE", {}).items()}
REFUSED: Settings = {name: found for m in MODULES for name, found in getattr(m, "REFUSED", {}).items()}
