"""Tokens read off the edges of their span."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Context, Cost, Embedding, Linear, Table


@register("head", "boundary")
class BoundaryHead(nn.Module):
    """A span's tokens from those before and behind it (SpanBERT: Joshi et al. 2019, arXiv:1907.10529): -> (B, P, V).

    Of P targets a text it reads of the batch `boundary_left`, `boundary_right` (B, P), where in the text the tokens beside
    the span stand, and `boundary_offset` (B, P), which of the span's tokens is asked for, counted from 0. Both vectors and
    one for the offset (the last for all from `longest` on), twice a linear, GELU and norm, then the token table (own weights
    unless model.tie_embeddings) and a bias.
    """

    per_token = False
    per_target = True
    scores = "span"
    needs = ("boundary_left", "boundary_right", "boundary_offset")
    small = {"longest": 4, "width": 8}
    telling = ({"longest": 5}, {"width": 12})
    unused = ("logit_scale", "logit_softcap")
    embedding: Embedding

    def __init__(
        self,
        sizes: Sizes,
        norm: Callable[[int, float], nn.Module],
        embedding: Embedding,
        /,
        *,
        longest: int = 20,  # tokens of a span that have a vector each
        width: int = 200,  # of the vector for the offset
    ):
        super().__init__()
        # As an attribute of nn.Module the token table would be in the state a second time.
        object.__setattr__(self, "embedding", embedding)
        dim, narrow = sizes.dim, embedding.embed_dim
        self.offsets = Table(longest, width, role="position")
        self.wide, self.wide_norm = Linear(2 * dim + width, dim, True, role="other"), norm(dim, sizes.norm_eps)
        self.dense, self.norm = Linear(dim, narrow, True, role="other"), norm(narrow, sizes.norm_eps)
        self.out = None if sizes.tie_embeddings else Linear(narrow, sizes.vocab_size, role="head")
        self.bias = nn.Parameter(torch.empty(sizes.vocab_size))

    def cost(self, tokens: int, keys: int) -> Cost:
        linears = (self.wide, self.dense, self.embedding if self.out is None else self.out)
        return Cost(flops=2 * tokens * sum(linear.weight.numel() for linear in linears))

    def forward(self, h: Tensor, ctx: Context) -> Tensor:
        missing = [n for n in self.needs if n not in ctx.data]
        if missing:
            raise ValueError(f"head=boundary reads {' and '.join(missing)} of the batch, which is not there")
        rows = torch.arange(len(h), device=h.device)[:, None]
        edges = [h[rows, ctx.data[f"boundary_{side}"]] for side in ("left", "right")]
        # Under autocast h is bfloat16 and the table float32, and `cat` promotes to the widest type of its arguments.
        offsets = ctx.data["boundary_offset"].clamp(max=len(self.offsets.weight) - 1)
        x_BPC = torch.cat([*edges, self.offsets(offsets).to(h.dtype)], -1)
        x_BPD = self.wide_norm(F.gelu(self.wide(x_BPC)))
        x_BPE = self.norm(F.gelu(self.dense(x_BPD)))
        return F.linear(x_BPE, self.embedding.weight if self.out is None else self.out.weight, self.bias)
