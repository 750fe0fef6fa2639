"""Scores of tokens by two tables, without any layer (word2vec)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Context, Embedding, Table


@register("head", "biased_context", bias=True)
@register("head", "context")
class ContextHead(nn.Module):
    """Each token's score by the tokens around it (word2vec: Mikolov et al. 2013, arXiv:1310.4546): -> (B, T).

    The batch's `context` (B, G, W) has ids, -1 for none, of which each of G groups is the mean of the vectors in the model's
    token table. The score of a token is the product of its vector in a second table and its group's; the T tokens belong to
    the groups in order, T / G to each. Without `context` each token is its own. Hidden states are not read.

    biased_context: The same plus a bias of the token and one of its group's (GloVe: Pennington et al. 2014, EMNLP).
    The group's is the mean over its tokens (equation 7).
    """

    per_token = False
    hidden = False
    scores = "context"
    needs = ("context",)
    unused = ("logit_scale", "logit_softcap", "tie_embeddings")
    words: Embedding

    def __init__(
        self,
        sizes: Sizes,
        norm: Callable[[int, float], nn.Module],
        embedding: Embedding,
        /,
        *,
        bias: bool = False,  # of each token in either table
    ):
        super().__init__()
        # As an attribute of nn.Module the token table would be in the state a second time.
        object.__setattr__(self, "words", embedding)
        self.table = Table(sizes.vocab_size, embedding.embed_dim, role="head")
        self.bias = nn.Parameter(torch.empty(sizes.vocab_size)) if bias else None
        self.context_bias = nn.Parameter(torch.empty(sizes.vocab_size)) if bias else None

    def forward(self, h: Tensor, ctx: Context) -> Tensor:
        assert ctx.ids is not None
        context_BGW = ctx.data.get("context", ctx.ids[..., None])
        there_BGW = context_BGW >= 0
        vectors_BGWE = nn.functional.embedding(context_BGW.clamp(min=0), self.words.weight)
        weight_BGW = there_BGW / there_BGW.sum(-1, keepdim=True).clamp(min=1)
        mean_BGE = (vectors_BGWE * weight_BGW[..., None].to(vectors_BGWE.dtype)).sum(2)
        scored_BGCE = self.table(ctx.ids).unflatten(1, (mean_BGE.shape[1], -1))
        # A product of matrices, which FlopCounterMode counts; an elementwise one with a sum has no FLOPs to it.
        scores_BT = (scored_BGCE @ mean_BGE[..., None]).flatten(1)
        if self.bias is None or self.context_bias is None:
            return scores_BT
        mean_BG = (self.context_bias[context_BGW.clamp(min=0)] * weight_BGW).sum(-1)
        return scores_BT + self.bias[ctx.ids] + mean_BG.repeat_interleave(scored_BGCE.shape[2], 1)

    def vectors(self) -> Tensor:
        """(V, E): the sum of both tables."""
        return self.words.weight + self.table.weight


@register("head", "subwords")
class SubwordHead(nn.Module):
    """Each token's score by words around it and their n-grams (FastText: Bojanowski et al. 2017, arXiv:1607.04606): -> (B, T).

    As `context`, but of each group the mean is over the vectors of its words and those of their n-grams, whose hashes are in
    the batch's `subwords` (B, G, K), -1 for none: those that are equal modulo `buckets` have one vector. So fastText trains;
    in the paper a word is the sum.
    """

    per_token = False
    hidden = False
    scores = "context"
    needs = ("context", "subwords")
    unused = ("logit_scale", "logit_softcap", "tie_embeddings")
    small = {"buckets": 13}
    telling = ({"buckets": 7},)
    words: Embedding

    def __init__(
        self,
        sizes: Sizes,
        norm: Callable[[int, float], nn.Module],
        embedding: Embedding,
        /,
        *,
        buckets: int = 100_000,  # vectors that all n-grams share; fastText has 2 million, for millions of words
    ):
        if buckets < 1:
            raise ValueError(f"heads.context.buckets={buckets} must be at least 1")
        super().__init__()
        # As an attribute of nn.Module the token table would be in the state a second time.
        object.__setattr__(self, "words", embedding)
        self.buckets = buckets
        self.grams = Table(buckets, embedding.embed_dim, role="embed")
        self.table = Table(sizes.vocab_size, embedding.embed_dim, role="head")

    def mean(self, ids: Tensor, hashes: Tensor) -> Tensor:
        """(N, E) of words (N, W) and hashes of n-grams (N, K), -1 for none of either."""
        return (self._sum(ids, self.words.weight) + self._sum(hashes, self.grams.weight)) / (
            (ids >= 0).sum(-1) + (hashes >= 0).sum(-1)
        ).clamp(min=1)[:, None]

    @staticmethod
    def _sum(rows: Tensor, weight: Tensor) -> Tensor:
        # A bag never holds a vector for each n-gram, which would be some hundred to a word.
        there = (rows >= 0).to(weight.dtype)
        return nn.functional.embedding_bag(
            rows.clamp(min=0) % len(weight), weight, per_sample_weights=there, mode="sum"
        )

    def forward(self, h: Tensor, ctx: Context) -> Tensor:
        assert ctx.ids is not None
        context_BGW = ctx.data.get("context", ctx.ids[..., None])
        subwords_BGK = ctx.data.get("subwords", torch.full_like(context_BGW, -1))
        mean_BGE = self.mean(context_BGW.flatten(0, 1), subwords_BGK.flatten(0, 1)).unflatten(0, context_BGW.shape[:2])
        scored_BGCE = self.table(ctx.ids).unflatten(1, (mean_BGE.shape[1], -1))
        return (scored_BGCE @ mean_BGE[..., None]).flatten(1)
