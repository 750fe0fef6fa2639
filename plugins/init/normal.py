"""Normal first values."""

from __future__ import annotations

import torch
from torch import Tensor

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Role


@register("init", "gpt2")
@register("init", "normal")
class Normal:
    """N(0, std^2) for every matrix and table (GPT-2: Radford et al. 2019). Biases 0.

    std: standard deviation
    residual_scale: what writes to the residual stream (roles out, ffn_out) has std / sqrt(2 n_layers)
    embed_std: of token, segment and position tables; None: std
    """

    # BERT's own code cuts its normal off at two deviations (truncated_normal_initializer); GPT-2's and transformers' do not.
    telling = ({"std": 0.1}, {"embed_std": 0.5})

    def __init__(self, *, std: float = 0.02, residual_scale: bool = True, embed_std: float | None = None):
        if std < 0 or (embed_std or 0) < 0:
            raise ValueError(f"init.std and init.embed_std must be at least 0, but are {std} and {embed_std}")
        self.std, self.residual_scale, self.embed_std = std, residual_scale, embed_std

    def fill(self, tensor: Tensor, role: Role, sizes: Sizes, generator: torch.Generator) -> None:
        std = self.std
        if role in ("embed", "position") and self.embed_std is not None:
            std = self.embed_std
        # GPT-2, section 2.3: 1 / sqrt(N) of N residual layers, of which a block has two.
        if role in ("out", "ffn_out") and self.residual_scale:
            std = std / (2 * sizes.n_layers) ** 0.5
        if role == "bias":
            tensor.zero_()
        else:
            tensor.normal_(0.0, std, generator=generator)
