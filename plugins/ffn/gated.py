"""Feed-forwards whose inner activation is multiplied by a gate."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmlab.registry import register


def identity(x: Tensor) -> Tensor:
    return x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    # Gemma was trained with the form by tanh, which differs from the exact one by up to 0.0005.
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "none": identity,
}


@register("ffn", "swiglu", act="silu")
@register("ffn", "geglu", act="gelu")
@register("ffn", "geglu_tanh", act="gelu_tanh")
@register("ffn", "reglu", act="relu")
@register("ffn", "glu", act="sigmoid")
@register("ffn", "bilinear", act="none")
class GatedFeedForward(nn.Module):
    """Gated linear unit (Shazeer 2020, arXiv:2002.05202): down(act(gate(x)) * up(x)). x (..., dim) -> (..., dim).

    swiglu: SwiGLU, down(silu(gate(x)) * up(x)) (Shazeer 2020, arXiv:2002.05202)
    geglu: GEGLU, down(gelu(gate(x)) * up(x)), exact (Shazeer 2020, arXiv:2002.05202)
    geglu_tanh: GEGLU with GELU by tanh, down(gelu(gate(x)) * up(x)) (Shazeer 2020, arXiv:2002.05202; Gemma)
    reglu: ReGLU, down(relu(gate(x)) * up(x)) (Shazeer 2020, arXiv:2002.05202)
    glu: GLU, down(sigmoid(gate(x)) * up(x)) (Dauphin et al. 2017, arXiv:1612.08083)
    bilinear: Bilinear, down(gate(x) * up(x)) (Mnih & Hinton 2007; Shazeer 2020, arXiv:2002.05202)
    """

    def __init__(
        self,
        dim: int,
        ffn_dim: int,
        linear: Callable[..., nn.Module],
        /,
        *,
        act: Literal["silu", "gelu", "gelu_tanh", "relu", "sigmoid", "none"] = "silu",  # the gate's activation
    ):
        super().__init__()
        self.act = ACTIVATIONS[act]
        # Two linears, though Phi-3's files, and Mixtral's class in transformers 5, hold one `gate_up_proj`.
        self.gate = linear(dim, ffn_dim, role="ffn_in")
        self.up = linear(dim, ffn_dim, role="ffn_in")
        # Three matrices instead of two: the paper keeps parameters equal
        # by 2/3 of the width (section 2); ffn_dim is what is given.
        self.down = linear(ffn_dim, dim, role="ffn_out")

    def forward(self, x: Tensor, groups: Tensor | None = None) -> Tensor:
        return self.down(self.act(self.gate(x, groups)) * self.up(x, groups), groups)
