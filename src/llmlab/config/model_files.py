"""The files of conf/model/: families, and sizes that their authors have published."""

from __future__ import annotations

from pathlib import Path


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
