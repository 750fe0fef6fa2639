"""What our part makes of inputs that are always the same, by slot."""

from __future__ import annotations

from collections.abc import Callable

from llmlab.check.twins.observers import attention, embedding, kernel, norm, position, visibility
from llmlab.check.twins.observers.observed import Observed
from llmlab.check.twins.settings import Setting

OBSERVERS: dict[str, Callable[[Setting], Observed]] = {
    "attention": attention.observe,
    "embedding": embedding.observe,
    "kernel": kernel.observe,
    "mask": visibility.mask,
    "norm": norm.observe,
    "position": position.observe,
    "window": visibility.window,
}
