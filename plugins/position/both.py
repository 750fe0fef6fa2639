"""Positions that are added to the embedding and to the scores at once."""

import torch
from torch import Tensor

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Context
from llmlab_plugins.position.absolute import Learned
from llmlab_plugins.position.bias import T5Bias


@register("position", "learned_t5_bias")
class LearnedT5Bias(T5Bias):
    """Learnt vectors added to the embedding, and T5's bias on the scores (MPNet: Song et al. 2020, arXiv:2004.09297).

    The vectors go by position ids, the bias by distances in the sequence, padding and all; where `queries` stand behind the
    text, both go by the positions that the batch has.
    """

    relative = False  # it counts places, whatever the positions
    has_bias = True
    small = {"buckets": 8, "max_distance": 10}
    telling = ({"buckets": 6}, {"max_distance": 30}, {"offset": 2})

    def __init__(
        self,
        sizes: Sizes,
        /,
        *,
        buckets: int = 32,  # of distances, both directions together
        max_distance: int = 128,  # from here on all distances are in the last bucket
        offset: int = 0,  # rows of the vectors' table before that of the first position
        skip_padding: bool = False,  # positions count tokens that are not padding
        pad_id: int | None = None,  # padding is this id, whatever is masked, and has the row before the first
    ):
        super().__init__(sizes, buckets=buckets, max_distance=max_distance)
        self.learned = Learned(sizes, offset=offset, skip_padding=skip_padding, pad_id=pad_id)

    def ids(self, ctx: Context) -> Tensor:
        """Of two streams (B, 2, T): rows of the table, and places in the text."""
        ids = self.learned.ids(ctx)
        if ctx.positions is None or "queries" not in ctx.data:
            return ids
        return torch.stack([ids, ctx.positions], -2)

    def embed(self, ids: Tensor) -> Tensor:
        return self.learned.embed(ids if ids.dim() < 3 else ids[:, 0])

    def prepare(self, q_ids: Tensor, k_ids: Tensor) -> Tensor:
        if k_ids.dim() == 3:
            return super().prepare(q_ids[:, 1], k_ids[:, 1])
        # MPNet's encoder calls compute_position_bias without position ids (mpnet/modeling_mpnet.py).
        where = torch.arange(k_ids.shape[-1], device=k_ids.device)
        return super().prepare(where[len(where) - q_ids.shape[-1] :], where)
