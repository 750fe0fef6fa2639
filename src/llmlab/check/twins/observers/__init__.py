"""What our part makes of inputs that are always the same, by slot."""

from __future__ import annotations

from collections.abc import Callable

from llmlab.check.twins.observers import block, ffn, head, init, moe, norm
from llmlab.check.twins.observers.observed import Observed
from llmlab.check.twins.settings import Setting

OBSERVERS: dict[str, Callable[[Setting], Observed]] = {
    "block": block.observe,
    "ffn": ffn.observe,
    "head": head.observe,
    "init": init.observe,
    "moe": moe.observe,
    "norm": norm.observe,
}
