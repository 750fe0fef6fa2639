"""Problems of the chosen loggers: packages that are missing, settings without effect."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmlab.config.composed import Composed


def problems(composed: Composed) -> list[str]:
    """A line each."""
    chosen = [name for name in ("wandb", "tensorboard") if composed.cfg.logger[name] is not None]
    lines = [
        f"logger={n}: the package {n} is not installed; pip install {n}, or leave logger={n} out"
        for n in chosen
        if not is_installed(n)
    ]
    if not chosen and "logger.samples" in composed.keys:
        lines.append("logger.samples: there is no logger; add logger=wandb or logger=tensorboard")
    return lines


def is_installed(package: str) -> bool:
    """True if a package can be imported. A folder of that name in the working directory, as W&B leaves one, is a namespace
    package to Python, which has no origin."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None
