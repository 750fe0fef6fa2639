"""No experts."""

from collections.abc import Callable

from torch import Tensor, nn

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Routing, no_reduce


@register("moe", "none")
class NoRouter(nn.Module):
    """No mixture of experts: a layer has one feed-forward, which every token visits."""

    dense = True
    unused = (
        "moe.n_experts",
        "moe.per_token",
        "moe.ffn_dim",
        "moe.n_shared",
        "moe.shared_dim",
        "moe.shared_gate",
        "moe.renormalise",
        "moe.scale",
        "moe.balance",
        "moe.z",
    )

    def __init__(self, sizes: Sizes, /):
        super().__init__()

    def forward(self, x_nD: Tensor, valid: Tensor | None, total: Callable[[Tensor], Tensor] = no_reduce) -> Routing:
        raise RuntimeError("moe=none routes nothing")
