"""Observer of attention parts that pass a state from token to token (`recurrent`), which have no positions and no source.

Inputs: `x` (B, T, D); `documents` (B, T), numbers of documents; `valid` (B, T), True of tokens that are no padding.

Outputs (B, T, D), of padding 0:

    self      the text is one
    packed    its documents are texts of their own
    padded    tokens that are not valid are left out
    both      both
    cached    under a causal mask: the last tokens (B, T', D), read over the cache that the first BEFORE ones left, which has
              padding in it
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmlab import registry
from llmlab.check.twins.observers.observed import Observed, arrays, build, given, sizes_of, uniform
from llmlab.check.twins.settings import Setting
from llmlab.model.view import LayerCache, View
from llmlab.slots import Context, Position

ROWS, LENGTH, BEFORE = 2, 7, 4


@torch.no_grad()
def observe(setting: Setting) -> Observed:
    sizes = sizes_of(setting)
    part = build(setting, sizes, registry.load("norm", "layernorm", {}))
    x = 2 * uniform("x", ROWS, LENGTH, sizes.dim)
    documents = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [3, 3, 3, 3, 3, 4, 4]])
    valid = torch.tensor([[0, 1, 1, 1, 0, 1, 1], [1, 1, 0, 1, 1, 1, 0]]).bool()

    def read(**context: Tensor) -> Tensor:
        y: Tensor = part(x, _view(Context(LENGTH, **context)))  # type: ignore[arg-type]
        return y if "valid" not in context else y * context["valid"][..., None]

    outputs = {
        "self": read(),
        "packed": read(documents=documents),
        "padded": read(valid=valid),
        "both": read(documents=documents, valid=valid),
    }
    if sizes.causal:
        cache = LayerCache(LENGTH)
        part(x[:, :BEFORE], _view(Context(BEFORE, valid=valid[:, :BEFORE])), None, cache)
        y = part(x[:, BEFORE:], _view(Context(LENGTH - BEFORE, BEFORE, valid=valid)), None, cache)
        outputs["cached"] = y * valid[:, BEFORE:, None]
    return Observed(given(setting, {"x": x, "documents": documents, "valid": valid}, part, sizes), arrays(outputs))


def _view(ctx: Context) -> View:
    nothing: Any = None  # it looks for neither scores nor a kernel
    return View(ctx, Position(), None, nothing, None)
