"""Doors of `import llmlab` beside checkpoints: a config and a model from what one would type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from llmlab.model.model import Model


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """The checked config of `llmlab train *overrides`. UserError, a line a problem, if it isn't sound."""
    # Deferred: `import llmlab` takes neither the 1.4 s of torch nor the 5.2 s of Lightning.
    from llmlab.runs.compose import compose

    return compose(overrides).cfg


def build(overrides: Sequence[str] = ()) -> Model:
    """The model of `llmlab train *overrides`, on the CPU, with its first values for the config's seed."""
    from llmlab.config import layout
    from llmlab.model.build import build_model
    from llmlab.runs.compose import compose

    composed = compose(overrides)
    return build_model(layout.resolve(composed), composed.cfg.seed)
