"""Observer of feed-forwards, dense and as experts.

Weights: `dense.PATH`, and `experts.PATH` with one more dimension in front, for the 3 experts.
Input: `x` (5, D), negative and positive, with some large values. The first expert takes two rows, the second none, the third
three.

Outputs:
- `dense`, `experts` (5, D).
- `training` (5, D): `dense` in training mode, only where model.ffn.dropout is 1, so that `down` (role ffn_out) reads 0.
- `roles`: numbers of the roles of the dense one's parameters.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from llmlab.check.twins.observers.observed import Observed, arrays, build, given, roles, sizes_of, uniform
from llmlab.check.twins.settings import Setting
from llmlab.model.experts import GroupedLinear, linears
from llmlab.slots import Linear

ENDS = (2, 2, 5)  # index behind each expert's last row


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
