"""Scores of tokens by two tables, without any layer (word2vec)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Context, Embedding, Table


@register("head", "context")
class ContextHead(nn.Module):
    """Each token's score by the tokens around it (word2vec: Mikolov et al. 2013, arXiv:1310.4546): -> (B, T).

    The batch's `context` (B, G, W) has ids, -1 for none, of which each of G groups is the mean of the vectors in the model's
    token table. The score of a token is the product of its vector in a second table and its group's; the T tokens belong to
    the groups in order, T / G to each. Without `context` each token is its own. Hidden states are not read.
    """

    per_token = False
    hidden = False
    scores = "context"
    needs = ("context",)
    unused = ("logit_scale", "logit_softcap", "tie_embeddings")
    words: Embedding

    def __init__(self, sizes: Sizes, norm: Callable[[int, float], nn.Module], embedding: Embedding, /):
        super().__init__()
        # As an attribute of nn.Module the token table would be in the state a second time.
        object.__setattr__(self, "words", embedding)
        self.table = Table(sizes.vocab_size, embedding.embed_dim, role="head")

    def forward(self, h: Tensor, ctx: Context) -> Tensor:
        assert ctx.ids is not None
        context_BGW = ctx.data.get("context", ctx.ids[..., None])
        there_BGW = context_BGW >= 0
        vectors_BGWE = nn.functional.embedding(context_BGW.clamp(min=0), self.words.weight)
        weight_BGW = there_BGW / there_BGW.sum(-1, keepdim=True).clamp(min=1)
        mean_BGE = (vectors_BGWE * weight_BGW[..., None].to(vectors_BGWE.dtype)).sum(2)
        scored_BGCE = self.table(ctx.ids).unflatten(1, (mean_BGE.shape[1], -1))
        # A product of matrices, which FlopCounterMode counts; an elementwise one with a sum has no FLOPs to it.
        return (scored_BGCE @ mean_BGE[..., None]).flatten(1)
