"""Hidden states in the width of another model."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Context, Embedding, Linear


@register("head", "projection")
class Projection(nn.Module):
    """A linear to a teacher's width (TinyBERT: Jiao et al. 2019, arXiv:1909.10351, equation 8): (..., D) -> (..., W).

    One for all the layers that are asked for, (n, B, T, D) -> (n, B, T, W), as `fit_dense` of the paper's code. It serves
    training alone: what is exported to transformers is without.
    """

    per_token = True
    layers = True
    exported = False
    unused = ("logit_scale", "logit_softcap", "tie_embeddings")
    telling = ({"width": 7}, {"width": 30, "bias": True})

    def __init__(
        self,
        sizes: Sizes,
        norm: Callable[[int, float], nn.Module],
        embedding: Embedding,
        /,
        *,
        width: int | None = None,  # W; None: of objective=distill the teacher's, else model.dim
        bias: bool = False,  # the paper's code has one, its equation none
    ):
        super().__init__()
        if width is not None and width < 1:
            raise ValueError(f"width of head=projection must be at least 1, but is {width}")
        self.out = Linear(sizes.dim, width or sizes.dim, bias, role="other")

    def forward(self, h: Tensor, ctx: Context) -> Tensor:
        return self.out(h)
