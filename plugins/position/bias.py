"""Positions that are added to the attention scores."""

import math

import torch
from torch import Tensor

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Position, Table


def distances(q_ids: Tensor, k_ids: Tensor) -> Tensor:
    """Key minus query: (T,) and (S,) -> (T, S); (B, T) and (B, S) -> (B, T, S)."""
    return k_ids[..., None, :] - q_ids[..., :, None]


def slopes(n_heads: int) -> list[float]:
    """ALiBi's slopes: 2^(-8i/n) for a power of two; else those of the next lower one, then every other of the next."""
    lower = 2 ** int(math.log2(n_heads))
    first = [2.0 ** (-8.0 * i / lower) for i in range(1, lower + 1)]
    return first + [2.0 ** (-4.0 * i / lower) for i in range(1, 2 * (n_heads - lower), 2)]


@register("position", "alibi")
class Alibi(Position):
    """Attention with linear biases (Press et al. 2021, arXiv:2108.12409): -slope |q - k| on the scores, never above 0.

    bias (N, T, S), or (B, N, T, S) where positions differ by sample, in float32.
    """

    has_bias = True

    def __init__(self, sizes: Sizes, /):
        super().__init__()
        self.slopes = slopes(sizes.n_heads)

    def prepare(self, q_ids: Tensor, k_ids: Tensor) -> Tensor:
        far = distances(q_ids, k_ids).abs().float()
        slope = torch.tensor(self.slopes, device=far.device)
        return -slope[:, None, None] * far[..., None, :, :]

    def bias(self, state: Tensor) -> Tensor:
        return state


@register("position", "t5_bias")
class T5Bias(Position):
    """T5's relative bias (Raffel et al. 2019, arXiv:1910.10683): a learnt scalar a head for each bucket of distances.

    Half of the buckets are single distances, the rest grow by a factor up to `max_distance`; in a stack that looks both
    ways, half of all are for what comes after. bias (N, T, S), or (B, N, T, S) where positions differ by sample.
    """

    has_bias = True

    def __init__(
        self,
        sizes: Sizes,
        /,
        *,
        buckets: int = 32,  # of distances, both directions together
        max_distance: int = 128,  # from here on all distances are in the last bucket
    ):
        super().__init__()
        self.causal, self.buckets, self.max_distance = sizes.causal, buckets, max_distance
        if buckets // (2 if sizes.causal else 4) < 1 or max_distance <= buckets // (2 if sizes.causal else 4):
            raise ValueError(
                f"position.buckets={buckets} is too few, or position.max_distance={max_distance} too short"
            )
        self.table = Table(buckets, sizes.n_heads, role="position")

    def bucket(self, distance: Tensor) -> Tensor:
        """Key minus query -> its bucket."""
        if self.causal:
            n, first = self.buckets, torch.zeros_like(distance)
            far = (-distance).clamp(min=0)
        else:
            n, first = self.buckets // 2, (distance > 0).long() * (self.buckets // 2)
            far = distance.abs()
        single = n // 2
        grown = torch.log(far.clamp(min=1).float() / single) / math.log(self.max_distance / single) * (n - single)
        return first + torch.where(far < single, far, (single + grown.long()).clamp(max=n - 1))

    def prepare(self, q_ids: Tensor, k_ids: Tensor) -> Tensor:
        return self.table(self.bucket(distances(q_ids, k_ids))).movedim(-1, -3)

    def bias(self, state: Tensor) -> Tensor:
        return state
