"""Observer of heads. Weights: `head.PATH`, and the token table `embedding.weight` (V, sizes.embed_dim).

A norm of width D and eps is w x / sqrt(mean(x^2) + eps) + b, with weights `NAME.weight` and `NAME.bias` (D,).

Inputs: hidden states `h` (4, 6, D); `ids` and `source_ids` (4, 6), where 5 and 7 occur in each row; `valid` (4, 6), True where
there is text, with padding on either side; `rows` (4, 6), True for chosen tokens; and those of `boundary_left`,
`boundary_right` and `boundary_offset` (4, 3), and `context` and `subwords` (4, 2, 3), that the part `needs`. Of a part that
reads `every_layer`, `layers` (sizes.n_layers + 1, 4, 6, D) in place of `h`.

Outputs:
- `full`: of `h` and `ids` without padding. `padded`: with `valid`. `source`: with `source_ids` in the batch.
- `later`: of h[:, 2:] and ids[:, 2:] with `valid` in the order of time turned round, two tokens being in a cache; not where
  the part needs data.
- `rows`: of h[rows] where the part is `per_token`, instead of these three.
- `training`: `full` in training where sizes.dropout or an option dropout is 1, so that whatever drops out is 0.
- `needy`: 1 where the part needs data and refuses to be without.
- `roles`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from llmlab import attributes
from llmlab.check.twins.observers.observed import (
    Observed,
    arrays,
    build,
    fill,
    given,
    options_of,
    roles,
    sizes_of,
    uniform,
)
from llmlab.check.twins.observers.simple import SimpleNorm
from llmlab.check.twins.settings import Setting
from llmlab.slots import Context

B, T, P = 4, 6, 3
VALID = ("tttt..", "..tttt", "t.....", "tttttt")
DATA = {
    "boundary_left": torch.tensor([[0, 1, 3], [2, 0, 1], [0, 0, 0], [3, 2, 4]]),
    "boundary_right": torch.tensor([[2, 4, 5], [4, 5, 3], [1, 2, 3], [5, 4, 5]]),
    "boundary_offset": torch.tensor([[0, 1, 0], [0, 3, 2], [0, 1, 2], [0, 1, 0]]),
    "context": torch.tensor(
        [[[4, -1, 9], [7, 7, 2]], [[-1, -1, -1], [3, 8, 1]], [[0, 5, -1], [6, -1, -1]], [[2, 9, 4], [1, 0, 3]]]
    ),
    "subwords": torch.tensor(
        [[[30, 3, -1], [2**32 - 1, 7, 7]], [[-1, -1, -1], [3, -1, 1]], [[0, 5, 11], [6, -1, -1]], [[-1] * 3, [1, 0, 3]]]
    ),
}


class _Embedding(nn.Module):
    def __init__(self, rows: int, width: int):
        super().__init__()
        self.embed_dim = width
        self.weight = nn.Parameter(torch.empty(rows, width))


@torch.no_grad()
def observe(setting: Setting) -> Observed:
    sizes = sizes_of(setting)
    embedding = fill(_Embedding(sizes.vocab_size, sizes.embed_dim))
    head = build(setting, sizes, SimpleNorm, embedding)
    per_token = attributes.get(head, "head", "per_token")
    inputs = {**_inputs(sizes.dim), **{key: DATA[key] for key in attributes.get(head, "head", "needs")}}
    if "longest" in options_of(setting) and "boundary_offset" in inputs:
        inputs["boundary_offset"] = inputs["boundary_offset"].clone()
        inputs["boundary_offset"][0, 0] = options_of(setting)["longest"]
    if attributes.get(head, "head", "every_layer"):
        inputs["layers"] = 2 * uniform("layers", sizes.n_layers + 1, B, T, sizes.dim) + 0.3
    h, ids, valid = inputs.get("layers", inputs["h"]), inputs["ids"], inputs["valid"]
    data = {key: inputs[key] for key in DATA if key in inputs}
    full = Context(T, ids=ids, data=data)
    outputs: dict[str, Tensor] = {"full": head(h, full)}
    if per_token:
        outputs["rows"] = head(h[..., inputs["rows"], :], full)
    else:
        outputs["padded"] = head(h, Context(T, ids=ids, valid=valid, data=data))
        outputs["source"] = head(h, Context(T, ids=ids, data={**data, "source_ids": inputs["source_ids"]}))
        if not data:
            outputs["later"] = head(h[..., 2:, :], Context(T - 2, 2, ids=ids[:, 2:], valid=valid.flip(1)))
    if sizes.dropout == 1.0 or options_of(setting).get("dropout") == 1.0:
        outputs["training"] = head.train()(h, full)
    if data:
        outputs["needy"] = torch.tensor(float(_refuses(head, h, ids)))
    both: Any = nn.ModuleDict({"head": head, "embedding": embedding})
    seen = given(setting, inputs, both)
    return Observed(seen, {**arrays(outputs), "roles": roles(head)})


def _refuses(head: nn.Module, h: Tensor, ids: Tensor) -> bool:
    try:
        head(h, Context(T, ids=ids))
    except ValueError:
        return True
    return False


def _inputs(dim: int) -> dict[str, Tensor]:
    ids = (10 + 40 * uniform("ids", B, T).abs()).long()
    source_ids = ids.clone()
    for row in range(B):
        ids[row, row + 2], ids[row, (row + 3) % T], ids[row, (row + 4) % T] = 5, 5, 7
        source_ids[row, row], source_ids[row, (row + 2) % T] = 5, 7
    return {
        "h": 2 * uniform("h", B, T, dim) + 0.3,
        "ids": ids,
        "source_ids": source_ids,
        "valid": torch.tensor([[c == "t" for c in row] for row in VALID]),
        "rows": uniform("rows", B, T) > 0.6,
    }
