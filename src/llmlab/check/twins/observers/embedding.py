"""Observer of embeddings, with layer norms and a position that looks up given vectors.

Those without a table have one of their own, characters.py.

Inputs: `ids` (B, T), `segments` (B, T) where sizes.token_types is not 0, `queries` (B, T) bool, `hidden` (B, T, D),
`places` (P, E) by position id, and `shared` (V, width), the table of another stack. The calls of the part:

    alone     ids, without positions
    placed    ids and segments; the first token is at the position OFFSET
    asked     as placed, with queries and hidden and without segments
    shared    as placed, by a part that was built with the table `shared`
    dropped   as placed, in training mode with sizes.dropout 1, so that dropout gives 0

Outputs: the vectors (B, T, D) of each call; `weight` and `shared_weight` (V, width), the tables that a tied head reads;
`trained` (V,), 1 for each row of the table that gets a gradient from `placed`; `gain`, the factor on vectors of the table;
`learns`, by the path of each parameter in alphabetical order, 1 if `placed` or `asked` has a gradient for it.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from llmlab import registry
from llmlab.check.twins.observers import characters
from llmlab.check.twins.observers.observed import Observed, arrays, build, given, options_of, sizes_of, uniform
from llmlab.check.twins.settings import Setting
from llmlab.slots import Context, Position, Table

ROWS, LENGTH, OFFSET = 2, 6, 2


class Places(Position):
    """A position that looks up given vectors."""

    def __init__(self, vectors: Tensor):
        super().__init__()
        self.vectors = vectors

    def embed(self, ids: Tensor) -> Tensor:
        return self.vectors[ids]


def observe(setting: Setting) -> Observed:
    if not registry.index()[setting.slot, setting.name].attribute("table"):
        return characters.observe(setting, Places)
    sizes, options = sizes_of(setting), options_of(setting)
    width = getattr(registry.load(setting.slot, setting.name, {}).func, "width", None)
    embed_dim = width(sizes, **options) if width else sizes.dim
    places = Places(uniform("places", OFFSET + LENGTH, embed_dim))
    norm = registry.load("norm", "layernorm", {})
    part, alone = (build(setting, sizes, position, norm, None) for position in (places, Position()))
    table = SimpleNamespace(weight=uniform("shared", *part.weight.shape), embed_dim=part.embed_dim)
    sharing = build(setting, sizes, places, norm, table)
    inputs = {
        "ids": torch.tensor([[5, 60, 1, 7, 5, 0], [1, 33, 2, 2, 59, 8]]),
        "queries": torch.tensor([[0, 0, 0, 1, 1, 0], [0, 1, 0, 0, 0, 0]]).bool(),
        "hidden": 2 * uniform("hidden", ROWS, LENGTH, sizes.dim),
        "places": places.vectors,
        "shared": table.weight,
    }
    if sizes.token_types:
        inputs["segments"] = torch.tensor([[0, 0, 1, 1, 2, 2], [1, 1, 1, 0, 0, 0]]) % sizes.token_types
    ids = inputs["ids"]
    ctx = Context(LENGTH, OFFSET, ids=ids, segments=inputs.get("segments"))
    placed = part(ids, ctx)
    placed.pow(2).sum().backward()
    trained = (part.weight.grad != 0).any(1).double()
    asked = part(ids, Context(LENGTH, OFFSET, ids=ids, data={key: inputs[key] for key in ("queries", "hidden")}))
    asked.pow(2).sum().backward()
    with torch.no_grad():
        outputs = {
            "alone": alone(ids, Context(LENGTH, ids=ids)),
            "placed": placed,
            "asked": asked,
            "shared": sharing(ids, ctx),
            "dropped": build(setting, sizes.but(dropout=1.0), places, norm, None).train()(ids, ctx),
            "weight": part.weight,
            "shared_weight": sharing.weight,
            "trained": trained,
            "learns": torch.tensor([_learns(p) for _, p in sorted(part.named_parameters())]),
            "gain": torch.tensor(_gain(part)),
        }
    return Observed(given(setting, inputs, part, sizes), arrays(outputs))


def _learns(parameter: Tensor) -> bool:
    return parameter.grad is not None and bool(parameter.grad.any())


def _gain(part: Any) -> float:
    """The gain of the table of tokens."""
    return next(float(m.gain) for m in part.modules() if isinstance(m, Table) and m.weight is part.weight)
