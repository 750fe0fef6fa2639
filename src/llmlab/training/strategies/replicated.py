"""Each device holds the whole model."""

from __future__ import annotations

from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from llmlab.training.strategies.portable import ByPath


class Single(ByPath, SingleDeviceStrategy):
    """One device."""


class DDP(ByPath, DDPStrategy):
    """Every rank holds the model; gradients are averaged (Li et al. 2020, arXiv:2006.15704)."""
