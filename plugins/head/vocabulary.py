"""Heads that give a score for every token of the vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Context, Embedding, Linear

from ._pieces import ACTIVATIONS, Transformed


@register("head", "lm")
class LanguageModelHead(nn.Module):
    """Logits of the next token: (..., D) -> (..., V), by the token table if tied (Press & Wolf 2016, arXiv:1608.05859).

    Then times model.logit_scale, then c tanh(. / c) with model.logit_softcap c. Where a tied table is narrower than D
    (embedding=factorized, or a table_width of embedding=token), a linear leads down to its width.
    """

    per_token = True
    scores = "vocabulary"
    embedding: Embedding
    fixed_bias: Tensor | None

    def __init__(
        self,
        sizes: Sizes,
        norm: Callable[[int, float], nn.Module],
        embedding: Embedding,
        /,
        *,
        bias: bool = False,  # on the logits
        unit_rows: bool = False,  # the table's rows are scaled to length 1 (Baichuan 2)
        fixed_bias: bool = False,  # one on the logits that is not learnt but kept with the weights (BART), at first 0
    ):
        super().__init__()
        self.tied, self.scale, self.softcap = sizes.tie_embeddings, sizes.logit_scale, sizes.logit_softcap
        self.unit_rows = unit_rows
        object.__setattr__(self, "embedding", embedding)
        narrow = self.tied and embedding.embed_dim != sizes.dim
        # `project_out` of OPT-350m, from 1,024 down to its table's 512, has no bias.
        self.down = Linear(sizes.dim, embedding.embed_dim, role="other") if narrow else None
        self.out = None if self.tied else Linear(sizes.dim, sizes.vocab_size, role="head")
        # One of the two names in BERT's checkpoints: `cls.predictions.decoder.bias` is tied to `cls.predictions.bias`.
        self.bias = nn.Parameter(torch.empty(sizes.vocab_size)) if bias else None
        # A persistent buffer of this shape: BART's state has `final_logits_bias` (1, V), which no gradient reaches.
        self.register_buffer("fixed_bias", torch.empty(1, sizes.vocab_size) if fixed_bias else None)

    def forward(self, h: Tensor, ctx: Context) -> Tensor:
        if self.down is not None:
            h = self.down(h)
        weight = self.embedding.weight if self.out is None else self.out.weight
        logits = F.linear(h, F.normalize(weight, dim=-1) if self.unit_rows else weight, self.bias)
        if self.fixed_bias is not None:
            logits = logits + self.fixed_bias
        if self.scale is not None:
            logits = logits * self.scale
        if self.softcap is not None:
            # Gemma 2 caps at 30 what the head gives, in the logits' own type (gemma2/modeling_gemma2.py).
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


@register("head", "both_ways")
class BidirectionalLMHead(nn.Module):
    """Logits of the next token and of the one before, of halves (ELMo: Peters et al. 2018, arXiv:1802.05365): (..., 2, V).

    (..., D): the first half of a hidden state, which has read the text up to its token, gives the next one's; the second half,
    which has read it from there on, gives those of the token before. One linear from D / 2 with a bias serves both.
    """

    per_token = True
    scores = "neighbours"
    unused = ("tie_embeddings", "logit_scale", "logit_softcap")

    def __init__(
        self,
        sizes: Sizes,
        norm: Callable[[int, float], nn.Module],
        embedding: Embedding,
        /,
        *,
        bias: bool = True,  # on the logits, of both
    ):
        super().__init__()
        if sizes.dim % 2:
            raise ValueError(f"head=both_ways reads halves of a hidden state, but model.dim={sizes.dim} is odd")
        self.out = Linear(sizes.dim // 2, sizes.vocab_size, bias, role="head")

    def forward(self, h: Tensor, ctx: Context) -> Tensor:
        return self.out(h.unflatten(-1, (2, -1)))


@register("head", "mlm")
class MaskedLMHead(Transformed):
    """BERT's head for masked tokens (Devlin et al. 2018, arXiv:1810.04805): (..., D) -> (..., V).

    A linear to the width of the token table, activation, norm, then the token table (own weights unless
    model.tie_embeddings) and a bias. Then times model.logit_scale: T5's table is too large without it.
    """

    per_token = True
    scores = "vocabulary"
    unused = ("logit_softcap",)
    embedding: Embedding

    def __init__(
        self,
        sizes: Sizes,
        norm: Callable[[int, float], nn.Module],
        embedding: Embedding,
        /,
        *,
        act: Literal["gelu", "gelu_tanh", "relu", "silu", "tanh"] = "gelu",  # the activation
        dense_bias: bool = True,  # on the linear
        bias: bool = True,  # on the logits
    ):
        super().__init__()
        self.act, self.scale = ACTIVATIONS[act], sizes.logit_scale
        object.__setattr__(self, "embedding", embedding)
        # Down to the table's width: ELECTRA's small generator and ALBERT have tables that are narrower than the stream.
        self.dense = Linear(sizes.dim, embedding.embed_dim, dense_bias, role="other")
        self.norm = norm(embedding.embed_dim, sizes.norm_eps)
        self.out = None if sizes.tie_embeddings else Linear(embedding.embed_dim, sizes.vocab_size, role="head")
        self.bias = nn.Parameter(torch.empty(sizes.vocab_size)) if bias else None

    def forward(self, h: Tensor, ctx: Context) -> Tensor:
        h = self.transform(h)
        logits = F.linear(h, self.embedding.weight if self.out is None else self.out.weight, self.bias)
        return logits if self.scale is None else logits * self.scale
