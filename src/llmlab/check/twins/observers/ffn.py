"""Feed-forwards, dense and as experts.

Weights: `dense.PATH` and `experts.PATH`, the latter with the number of experts, 3, before their shape.
Input: `x` (5, D), negative and positive, some large. Of experts the first takes two rows, the second none, the third three.

Outputs:
- `dense`, `experts` (5, D).
- `training` (5, D): `dense` in training where model.ffn.dropout is 1, so that what the role ffn_out reads is 0.
- `roles` of the dense one.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from llmlab.check.twins.observers.observed import Observed, arrays, build, given, roles, sizes_of, uniform
from llmlab.check.twins.settings import Setting
from llmlab.model.experts import GroupedLinear, linears
from llmlab.slots import Linear

ENDS = (2, 2, 5)  # of the rows of each expert


@torch.no_grad()
def observe(setting: Setting) -> Observed:
    sizes = sizes_of(setting)
    dense = build(setting, sizes.dim, sizes.ffn_dim, linears(Linear, sizes.ffn))
    experts = build(setting, sizes.dim, sizes.ffn_dim, linears(partial(GroupedLinear, len(ENDS)), sizes.ffn))
    scale = torch.tensor([0.5, 1.0, 2.0, 4.0, 1.0])
    x = scale[:, None] * uniform("x", 5, sizes.dim)
    outputs = {"dense": dense(x), "experts": experts(x, torch.tensor(ENDS, dtype=torch.int32))}
    if sizes.ffn.dropout == 1.0:
        outputs["training"] = dense.train()(x)
    seen = given(setting, {"x": x}, nn.ModuleDict({"dense": dense, "experts": experts}))
    return Observed(seen, {**arrays(outputs), "roles": roles(dense)})
