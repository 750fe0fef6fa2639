"""Heads that give a score for each of a few classes."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Context, Embedding, Linear


@register("head", "pooled")
class PooledHead(nn.Module):
    """One answer a text, from its first token (BERT: Devlin et al. 2018, arXiv:1810.04805): (B, T, D) -> (B, C).

    tanh(linear), dropout, linear to n_classes; with n_classes 0 the pooled vector itself, (B, D).
    """

    per_token = False

    def __init__(
        self,
        sizes: Sizes,
        norm: Callable[[int, float], nn.Module],
        embedding: Embedding,
        /,
        *,
        n_classes: int = 2,  # 0: the pooled vector itself
    ):
        super().__init__()
        self.dense = Linear(sizes.dim, sizes.dim, True, role="other")
        self.dropout = nn.Dropout(sizes.dropout)
        self.out = Linear(sizes.dim, n_classes, True, role="head") if n_classes else None

    def forward(self, h: Tensor, ctx: Context) -> Tensor:
        pooled = self.dense(h[:, 0]).tanh()
        return pooled if self.out is None else self.out(self.dropout(pooled))


@register("head", "span")
@register("head", "token")
class TokenHead(nn.Module):
    """One answer a token (Devlin et al. 2018, arXiv:1810.04805): (..., D) -> (..., C), a linear after dropout.

    span: Where an answer starts and ends, as two classes (Devlin et al. 2018, arXiv:1810.04805).
    """

    per_token = True

    def __init__(
        self,
        sizes: Sizes,
        norm: Callable[[int, float], nn.Module],
        embedding: Embedding,
        /,
        *,
        n_classes: int = 2,  # scores a token
        bias: bool = True,  # on the scores
    ):
        super().__init__()
        self.dropout = nn.Dropout(sizes.dropout)
        self.out = Linear(sizes.dim, n_classes, bias, role="head")

    def forward(self, h: Tensor, ctx: Context) -> Tensor:
        return self.out(self.dropout(h))
