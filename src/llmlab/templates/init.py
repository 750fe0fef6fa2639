"""First values of your own."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Role
from llmlab.twins import Given, twin


@register("init", "my_init")
class MyInit:
    """N(0, gain^2 / inputs) for every matrix (LeCun et al. 1998, "Efficient BackProp"), tables N(0, table_std^2).

    Called for each parameter that is neither a constant of its module nor a bias, with its role; `tensor` is whole, in
    float32, to be filled in place from `generator` alone: then a run can be repeated under any strategy.
    """

    logit_variance = 1.0  # of a model's first logits: a head's rows are of length 1, what it reads of length sqrt(dim)
    telling = ({"gain": 2.0}, {"table_std": 0.5})

    def __init__(
        self,
        *,
        gain: float = 1.0,  # on the standard deviation of matrices
        table_std: float = 0.02,  # of token, segment and position tables
    ):
        if gain < 0 or table_std < 0:
            raise ValueError(f"init.gain={gain} and init.table_std={table_std} must be at least 0")
        self.gain, self.table_std = gain, table_std

    def fill(self, tensor: Tensor, role: Role, sizes: Sizes, generator: torch.Generator) -> None:
        table = role in ("embed", "position")
        # The last dimension is the number of inputs, of an expert's weights (E, out, in) too.
        tensor.normal_(0.0, self.table_std if table else self.gain * tensor.shape[-1] ** -0.5, generator=generator)


# Not of the class: `llmlab check` holds the part to what this says, at every setting of its options. What a twin is given, and
# which outputs it may give, is listed in the docstring of llmlab.check.twins.observers.init.
@twin("init", "my_init", source="LeCun et al. 1998, section 4.6")
def definition(given: Given) -> dict[str, np.ndarray]:
    normal = np.array([NormalDist().inv_cdf(q) for q in given.inputs["quantiles"]])
    table, matrix, experts = (
        std * normal
        for std in (
            given.options["table_std"],
            given.options["gain"] / np.sqrt(given.inputs["shape"][-1]),
            given.options["gain"] / np.sqrt(given.inputs["experts_shape"][-1]),
        )
    )
    matrices = dict.fromkeys(("q", "k", "v", "out", "ffn_in", "ffn_out", "router", "head"), matrix)
    return {**matrices, "embed": table, "position": table, "experts": experts}
