"""Sliding windows, in all layers or in some, from config.json and back."""

from __future__ import annotations

from collections.abc import Sequence

from llmlab.config.spec import ModelSpec
from llmlab.errors import UserError
from llmlab.hub.entry import expect

KINDS = {"sliding_attention": "local", "full_attention": "global"}


def read_windows(types: Sequence[str], left: int | None) -> list[str]:
    """Overrides for the `layer_types` of config.json, whose sliding layers see `left` tokens, themselves included."""
    for name in types:
        expect({"layer_types": name}, "layer_types", *KINDS)
    if "sliding_attention" not in types:
        return ["window=full"]
    if not left:
        raise UserError(f"config.json: layer_types has sliding_attention, but sliding_window={left!r}")
    if "full_attention" not in types:
        # transformers counts the token itself (`kv_idx > q_idx - sliding_window`), as `left` does.
        return ["window=sliding", f"window.left={left}"]
    return [
        # With a +, since Hydra replaces without one only what a defaults list names, and
        # these families' files name no kinds.
        "+window@kinds.local.window=sliding",
        "+window@kinds.global.window=full",
        f"kinds.local.window.left={left}",
        f"layers.first=[{','.join(KINDS[t] for t in types)}]",
    ]


def write_windows(spec: ModelSpec) -> tuple[list[str], int | None]:
    """The reverse: `layer_types` and the window of the sliding ones."""
    windows = [layer.parts["window"] for layer in spec.stacks[0].layers]
    types = ["sliding_attention" if w.name == "sliding" else "full_attention" for w in windows]
    return types, next((w.options["left"] for w in windows if w.name == "sliding"), None)
