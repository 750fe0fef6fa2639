"""The folder conf/, and its model files: families, and sizes that their authors have published."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

from llmlab.errors import UserError


@functools.lru_cache(maxsize=1)
def conf_dir() -> Path:
    """The folder of the YAML files that come with llmlab."""
    # conf/ has no __init__.py: as a namespace package it has places and no file, in a checkout and in a wheel.
    spec = importlib.util.find_spec("llmlab_conf")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("llmlab is not installed with its conf/ folder; pip install -e . in its checkout")
    # The first: setuptools' editable install adds an entry of its own, which is no folder.
    return Path(next(iter(spec.submodule_search_locations))).resolve()


def families() -> list[str]:
    """The models that come with llmlab, but for their published sizes: there are many."""
    files = sorted((conf_dir() / "model").glob("*.yaml"))
    return [f.stem for f in files if published(f) is None]


def published(file: Path) -> str | None:
    """The published size that a model file stands for, by its own key `published`; None: it is a family, or no such file."""
    import yaml

    try:
        text = file.read_text(encoding="utf-8")
        # PyYAML without libyaml needs half a millisecond a file, and there are 150.
        if "published:" not in text:
            return None
        # libyaml's loader, eight times as fast, is not in every build of PyYAML.
        found = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    # Composing reports what is wrong with the file.
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return found.get("published") if isinstance(found, dict) else None
