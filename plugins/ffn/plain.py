"""Two linears with an activation between them."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmlab.registry import register


def relu2(x: Tensor) -> Tensor:
    return torch.square(F.relu(x))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    # GPT-2's `gelu_new` and PyTorch's "tanh" are the same formula; BERT's "gelu" is the exact one.
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "relu2": relu2,
}


@register("ffn", "relu", act="relu")
@register("ffn", "gelu", act="gelu")
@register("ffn", "gelu_tanh", act="gelu_tanh")
@register("ffn", "silu", act="silu")
@register("ffn", "relu2", act="relu2")
class FeedForward(nn.Module):
    """Position-wise feed-forward (Vaswani et al. 2017, arXiv:1706.03762): down(act(up(x))). x (..., dim) -> (..., dim).

    relu: ReLU, down(relu(up(x))) (Vaswani et al. 2017, arXiv:1706.03762)
    gelu: GELU, down(gelu(up(x))), exact (Hendrycks & Gimpel 2016, arXiv:1606.08415)
    gelu_tanh: GELU by tanh, down(gelu(up(x))) (Hendrycks & Gimpel 2016, arXiv:1606.08415)
    silu: SiLU, down(silu(up(x))) (Swish: Ramachandran et al. 2017, arXiv:1710.05941)
    relu2: Squared ReLU, down(relu(up(x))^2) (Primer: So et al. 2021, arXiv:2109.08668)
    """

    def __init__(
        self,
        dim: int,
        ffn_dim: int,
        linear: Callable[..., nn.Module],
        /,
        *,
        act: Literal["relu", "gelu", "gelu_tanh", "silu", "relu2"] = "gelu",  # the activation
    ):
        super().__init__()
        self.act = ACTIVATIONS[act]
        self.up = linear(dim, ffn_dim, role="ffn_in")
        self.down = linear(ffn_dim, dim, role="ffn_out")

    def forward(self, x: Tensor, groups: Tensor | None = None) -> Tensor:
        return self.down(self.act(self.up(x, groups)), groups)
