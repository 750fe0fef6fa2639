"""First values that go with DeepNorm."""

from __future__ import annotations

import torch
from torch import Tensor

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Role


@register("init", "deepnorm")
class DeepNormInit:
    """Xavier normal, less in deep models (DeepNet: Wang et al. 2022, arXiv:2203.00555). Biases 0.

    std = gain * sqrt(2 / (inputs + outputs)), where values, attention outputs and the feed-forward have the gain
    (depth * layers)^-exponent, the paper's beta of a decoder, and all else has 1. Tables have embed_std.

    depth: 2 in GLM-130B
    exponent: 0.5 in GLM-130B
    embed_std: of token, segment and position tables
    """

    telling = ({"depth": 3.0, "exponent": 0.5}, {"embed_std": 0.3})
    logit_variance = 1.0  # in a vocabulary that is larger than the model is wide, 2 / (1 + V / D)

    def __init__(self, *, depth: float = 8.0, exponent: float = 0.25, embed_std: float = 0.02):
        if depth <= 0 or embed_std < 0:
            raise ValueError(f"init.depth={depth} must be more than 0, and init.embed_std={embed_std} at least 0")
        self.depth, self.exponent, self.embed_std = depth, exponent, embed_std

    def fill(self, tensor: Tensor, role: Role, sizes: Sizes, generator: torch.Generator) -> None:
        if role == "bias":
            tensor.zero_()
            return
        # The last two dims: tensors of experts have them behind the number of experts.
        std = (2.0 / sum(tensor.shape[-2:])) ** 0.5
        if role in ("v", "out", "ffn_in", "ffn_out"):
            std *= (self.depth * sizes.n_layers) ** -self.exponent
        if role in ("embed", "position"):
            std = self.embed_std
        tensor.normal_(0.0, std, generator=generator)
