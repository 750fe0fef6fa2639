"""T5's first values."""

from __future__ import annotations

import torch
from torch import Tensor

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Role


@register("init", "t5")
class T5:
    """Normal by fan-in, as T5 in Mesh TensorFlow (Raffel et al. 2019, arXiv:1910.10683). Biases 0.

    std = factor * inputs^-1/2; token table: factor, but factor * dim^-1/2 where a tied head reads it and no
    model.logit_scale makes up for it, either divided by what embedding=scaled multiplies by; position bias: factor * dim^-1/2.
    Where model.attention.scale is 1, queries take its head_dim^-1/2 into their own std.
    """

    telling = ({"factor": 0.5},)
    logit_variance = 1.0

    def __init__(self, *, factor: float = 1.0):  # on every std
        self.factor = factor

    def fill(self, tensor: Tensor, role: Role, sizes: Sizes, generator: torch.Generator) -> None:
        std = self.factor * tensor.shape[-1] ** -0.5
        if role == "q" and sizes.attention.scale == 1.0:
            # (d_model * d_kv)^-0.5 in modeling_t5.py: what T5's scores lack as a scale, its queries bring along.
            std *= sizes.head_dim**-0.5
        elif role == "embed":
            # Tied T5 multiplies what its head reads by d_model^-0.5 (`scale_decoder_outputs`),
            # so that a table of deviation 1 gives logits of deviation 1.
            std = (std if sizes.tie_embeddings and sizes.logit_scale is None else self.factor) / sizes.gain
        elif role == "position":
            std = self.factor * sizes.dim**-0.5
        if role == "bias":
            tensor.zero_()
        else:
            tensor.normal_(0.0, std, generator=generator)
