"""Observer of inits: quantiles of the values drawn for each role, in tensors large enough to tell distributions apart.

Inputs: `quantiles`; `shape` (outputs, inputs), which is (rows, width) of a table; `experts_shape` (experts, outputs, inputs).

Outputs: `ROLE`, those quantiles of a tensor of that shape, for each role but norm; `experts`, those of a tensor of
`experts_shape` with the role ffn_in; and the attribute `logit_variance`.
"""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import torch

from llmlab import attributes
from llmlab.check.twins.observers.observed import Observed, build, given, sizes_of
from llmlab.check.twins.settings import Setting
from llmlab.modules import Role
from llmlab.seeds import key

SHAPE, EXPERTS = (256, 400), (40, 32, 80)
QUANTILES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
# Five standard errors of the 0.98 quantile of 100,000 normal values; a factor of 1.03 on them shows.
TOLERANCE = 0.02


def observe(setting: Setting) -> Observed:
    init, sizes = build(setting), sizes_of(setting)
    outputs = {}
    for name in (
        *(role for role in get_args(Role) if role != "adapter"),
        "experts",
    ):  # an adapter begins as it says itself
        if name == "norm":  # its first values are constants of its module
            continue
        tensor = torch.full(EXPERTS if name == "experts" else SHAPE, float("nan"))
        role: Any = "ffn_in" if name == "experts" else name
        init.fill(tensor, role, sizes, torch.Generator().manual_seed(key("init", name)))
        outputs[name] = np.quantile(tensor.numpy(), QUANTILES)
    outputs["logit_variance"] = np.array(attributes.get(init, "init", "logit_variance"))
    inputs = {"quantiles": QUANTILES, "shape": SHAPE, "experts_shape": EXPERTS}
    asked = given(setting, {name: torch.tensor(values) for name, values in inputs.items()})
    return Observed(asked, outputs, TOLERANCE)
