"""A head of your own: what is read off the hidden states."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Context, Embedding, Linear
from llmlab.twins import Given, twin


@register("head", "my_head")
class MyHead(nn.Module):
    """Logits of the next token: (..., D) -> (..., V), by the token table if tied (Press & Wolf 2016, arXiv:1608.05859)."""

    per_token = True  # it may be given the rows (n, D) of chosen tokens instead of (B, T, D)
    unused = ("logit_scale", "logit_softcap")
    embedding: Embedding

    def __init__(
        self,
        sizes: Sizes,
        norm: Callable[[int, float], nn.Module],
        embedding: Embedding,
        /,
        *,
        bias: bool = False,  # on the logits
    ):
        super().__init__()
        if sizes.tie_embeddings and embedding.embed_dim != sizes.dim:
            raise ValueError("head=my_head can't be tied to a table of another width")
        # Set past nn.Module, which would take it for a child: its parameters are the stack's.
        object.__setattr__(self, "embedding", embedding)
        self.out = None if sizes.tie_embeddings else Linear(sizes.dim, sizes.vocab_size, role="head")
        self.bias = nn.Parameter(torch.empty(sizes.vocab_size)) if bias else None

    def forward(self, h: Tensor, ctx: Context) -> Tensor:
        # The table is read when it is used, and not kept: FSDP puts another tensor in its place.
        return F.linear(h, self.embedding.weight if self.out is None else self.out.weight, self.bias)


# Not of the class: `llmlab check` holds the part to what this says, at every setting of its options. What a twin is given, and
# which outputs it may give, is listed in the docstring of llmlab.check.twins.observers.head.
@twin("head", "my_head", source="Press and Wolf 2016")
def definition(given: Given) -> dict[str, np.ndarray]:
    h, chosen = given.inputs["h"], given.inputs["rows"]
    table = given.weights["embedding.weight" if given.sizes.tie_embeddings else "head.out.weight"]
    bias = given.weights["head.bias"] if given.options["bias"] else 0.0
    return {"full": h @ table.T + bias, "rows": h[chosen] @ table.T + bias}
