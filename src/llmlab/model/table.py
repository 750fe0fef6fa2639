"""The table of resolved layers that a run prints and records."""

from __future__ import annotations

from collections.abc import Iterator

from llmlab.config.spec import LayerSpec, ModelSpec, StackSpec
from llmlab.slot_names import LAYER_SLOTS, STACK_SIZES


def describe(spec: ModelSpec) -> list[str]:
    """A line for what all layers share, then one for each run of like layers where they differ; * marks a displaced choice."""
    lines = []
    differ = [size for size in STACK_SIZES if len({getattr(stack.sizes, size) for stack in spec.stacks}) > 1]
    for stack in spec.stacks:
        name = f"{stack.name}: " if len(spec.stacks) > 1 else ""
        shared = {slot for slot in LAYER_SLOTS if len({str(layer.parts[slot]) for layer in stack.layers}) == 1}
        first = stack.layers[0]
        count = len(stack.execute)
        stored = (
            "" if len(stack.layers) == count else f" ({len(stack.layers)} stored, run in the order {_order(stack)})"
        )
        cross = f" cross_attention={stack.cross_attention}" if stack.cross_attention else ""
        common = " ".join(_cell(first, slot) for slot in LAYER_SLOTS if slot in shared)
        sizes = "".join(f" {size}={getattr(stack.sizes, size)}" for size in differ)
        table = " with a table of its own" if not stack.shared_embedding else ""
        embedding = f"embedding={stack.embedding}{table}"
        lines.append(f"{name}{count} layers{stored}:{sizes} {embedding} {common} mask={stack.mask}{cross}")
        if len(shared) < len(LAYER_SLOTS):
            for start, end, layer in _runs(stack):
                where = f"{start}" if start == end else f"{start}-{end}"
                own = " ".join(_cell(layer, slot) for slot in LAYER_SLOTS if slot not in shared)
                lines.append(f"  {where:>7} {layer.kind or stack.name:8} {own}")
    if spec.table_delta:
        lines.append("token table: a companion's plus a delta, which alone the model moves")
    if spec.adapter is not None:
        lines.append(f"adapter={spec.adapter}")
    return lines


def _cell(layer: LayerSpec, slot: str) -> str:
    mark = f"* (displaces {layer.displaced[slot]})" if slot in layer.displaced else ""
    return f"{slot}={layer.parts[slot]}{mark}"


def _order(stack: StackSpec) -> str:
    text = ",".join(map(str, stack.execute[:8]))
    return text + (",..." if len(stack.execute) > 8 else "")


def _runs(stack: StackSpec) -> Iterator[tuple[int, int, LayerSpec]]:
    """Consecutive layers of the same kind, as (first, last, layer)."""
    start = 0
    for i, layer in enumerate(stack.layers):
        following = stack.layers[i + 1] if i + 1 < len(stack.layers) else None
        if following is None or following.kind != layer.kind:
            yield start, i, layer
            start = i + 1


def ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2, 5"; steps are written out: [0, 2, 4] -> "0, 2, 4"."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    spelled = [str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs]
    return ", ".join(spelled) if len(spelled) <= 6 else f"{', '.join(spelled[:5])} ... {spelled[-1]}"
