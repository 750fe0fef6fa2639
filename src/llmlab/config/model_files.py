"""The folder conf/, and its model files: families, and sizes that their authors have published."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

from llmlab.errors import UserError


@functools.lru_cache(maxsize=1)
def conf_dir() -> Path:
    """The folder of the YAML files that come with llmlab."""
    spec = importlib.util.find_spec("llmlab_conf")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("llmlab is not installed with its conf/ folder; pip install -e . in its checkout")
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
        if "published:" not in text:  # PyYAML needs a millisecond a file, and there are 150
            return None
        found = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):  # what is wrong with it, composing says
        return None
    return found.get("published") if isinstance(found, dict) else None
