"""Observer of attention parts, with a causal mask, layer norms, and a position that multiplies and adds given tensors.

Those that are recurrent have one of their own, recurrence.py.

The position multiplies queries and keys by `q_factor` and `k_factor` (T, R), where R is the width that the part lets a position
turn, and adds `bias` (N, T, T) to the scaled products. It acts on self-attention only.

The part is called in five ways. The first three, in which tokens of `x` (B, T, D) attend to each other, are left out where
sizes.source_dim is neither 0 nor D:

    self      all of x at once
    cached    the first BEFORE tokens of x, then the rest with a cache, which has keys as the position has turned them
    unturned  the same with keys cached as they were projected, before the position
    cross     x attends to `source` (B, S, source_dim or D), of which `valid` (B, S) are tokens
    crossed   the same in two pieces: the last tokens of x use the cache that the first BEFORE ones left

Outputs: the result (B, T', D) of each call under its name, for the tokens of its last piece; `training`, that of `self` in
training mode, only where model.attention.dropout is 1; `pair_width`; and, if the part has `project`, `queries` (N, L, H) and
`keys` (K, L, H) of the input `vectors` (L, D), which are not tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llmlab import registry
from llmlab.check.twins.observers import recurrence
from llmlab.check.twins.observers.observed import Observed, arrays, build, given, options_of, sizes_of, uniform
from llmlab.check.twins.settings import Setting
from llmlab.model.view import LayerCache, View
from llmlab.model.visibility import Visible, VisibleSource
from llmlab.slots import Context, Position, Term

OWN_SIZES = {
    "n_heads": 6,
    "n_kv_heads": 2,
}  # where a setting does not say it: groups of another number than there are of them
ROWS, LENGTH, BEFORE, SOURCE, N_VECTORS = 2, 7, 4, 5, 3
# Row 0 is large enough for a cap on queries and keys to act, row 1 small enough for a norm's eps to count.
ROW_SCALES = torch.tensor([1.0, 0.05], dtype=torch.float64)[:, None, None]


class Factors(Position):
    """A position that multiplies queries and keys by given factors, and adds a given bias."""

    has_bias = True

    def __init__(self, inputs: dict[str, Tensor], caches_rotated: bool):
        super().__init__()
        self.inputs, self.caches_rotated = inputs, caches_rotated

    def prepare(self, q_ids: Tensor, k_ids: Tensor) -> tuple[Tensor, Tensor]:
        return q_ids, k_ids

    def rotate(self, q_BNTH: Tensor, k_BKSH: Tensor, state: tuple[Tensor, Tensor]) -> list[Term]:
        q_ids, k_ids = state
        keys = self.inputs["k_factor"][k_ids[len(k_ids) - k_BKSH.shape[-2] :]]
        return [Term(q_BNTH * self.inputs["q_factor"][q_ids], k_BKSH * keys)]

    def bias(self, q_BNTH: Tensor, k_BKSH: Tensor, scale: float, state: tuple[Tensor, Tensor]) -> Tensor:
        q_ids, k_ids = state
        return self.inputs["bias"][:, q_ids][:, :, k_ids]


def observe(setting: Setting) -> Observed:
    if registry.index()[setting.slot, setting.name].attribute("recurrent"):
        return recurrence.observe(setting)
    sizes = sizes_of(setting).but(**{key: value for key, value in OWN_SIZES.items() if key not in setting.sizes})
    part = build(setting, sizes, registry.load("norm", "layernorm", {}))
    factory = registry.load(setting.slot, setting.name, options_of(setting)).func
    turned = getattr(factory, "rotary_width", None)
    width = turned(sizes, **options_of(setting)) if turned else sizes.head_dim
    x = uniform("x", ROWS, LENGTH, sizes.dim)
    inputs = {
        "x": 1.5 * ROW_SCALES.to(x.dtype) * x,
        "source": uniform("source", ROWS, SOURCE, sizes.source_dim or sizes.dim),
        "valid": torch.tensor([[1, 1, 0, 1, 1], [1, 0, 0, 1, 0]]).bool(),
        "q_factor": uniform("q_factor", LENGTH, width) + 1.5,
        "k_factor": uniform("k_factor", LENGTH, width) - 1.5,
        "bias": uniform("bias", sizes.n_heads, LENGTH, LENGTH),
        "vectors": uniform("vectors", N_VECTORS, sizes.dim),
    }
    outputs = _crossed(part, inputs)
    if sizes.source_dim in (0, sizes.dim):
        for name, caches_rotated in (("self", None), ("cached", True), ("unturned", False)):
            outputs[name] = _read(
                part, inputs, Factors(inputs, caches_rotated is not False), caches_rotated is not None
            )
        if sizes.attention.dropout == 1.0:
            view = replace(_view(Factors(inputs, True), 0, LENGTH), training=True)
            outputs["training"] = part.train()(inputs["x"], view)
            part.eval()
        if hasattr(part, "project"):
            outputs["queries"], outputs["keys"] = part.project(inputs["vectors"])
    outputs["pair_width"] = torch.tensor(part.pair_width)
    return Observed(given(setting, inputs, part, sizes), arrays(outputs))


def _view(position: Position, begin: int, end: int) -> View:
    ctx = Context(end - begin, begin)
    kernel = registry.load("kernel", "eager", {})()
    mask, window = (registry.load(slot, name, {})() for slot, name in (("mask", "causal"), ("window", "full")))
    state = position.prepare(torch.arange(begin, end), torch.arange(end))
    return View(ctx, position, state, kernel, kernel.lower(Visible(mask, window, ctx)))


@torch.no_grad()
def _read(part: Any, inputs: dict[str, Tensor], position: Position, cached: bool) -> Tensor:
    """The result for the tokens that are read last."""
    if not cached:
        return part(inputs["x"], _view(position, 0, LENGTH))
    cache = LayerCache(LENGTH)
    part(inputs["x"][:, :BEFORE], _view(position, 0, BEFORE), None, cache)
    return part(inputs["x"][:, BEFORE:], _view(position, BEFORE, LENGTH), None, cache)


@torch.no_grad()
def _crossed(part: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    x, source, cache = inputs["x"], inputs["source"], LayerCache(0)

    def view(length: int) -> View:
        plain = _view(Position(), 0, length)
        return replace(plain, lowered=plain.kernel.lower(VisibleSource(inputs["valid"], length)))

    whole = part(x, view(LENGTH), source)
    part(x[:, :BEFORE], view(BEFORE), source, cache)
    return {"cross": whole, "crossed": part(x[:, BEFORE:], view(LENGTH - BEFORE), source, cache)}
