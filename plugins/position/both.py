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

    The vectors go by position ids, the bias by distances in the sequence, padding and all.
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
        return self.learned.ids(ctx)

    def embed(self, ids: Tensor) -> Tensor:
        return self.learned.embed(ids)

    def prepare(self, q_ids: Tensor, k_ids: Tensor) -> Tensor:
        # MPNet's encoder calls compute_position_bias without position ids (mpnet/modeling_mpnet.py).
        where = torch.arange(k_ids.shape[-1], device=k_ids.device)
        return super().prepare(where[len(where) - q_ids.shape[-1] :], where)
