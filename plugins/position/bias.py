"""Positions that are added to the attention scores."""

import math
from typing import ClassVar

import torch
from torch import Tensor

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Context, Position, Table
from llmlab_plugins.position.absolute import Absolute, tokens_before


def distances(q_ids: Tensor, k_ids: Tensor) -> Tensor:
    """Key minus query: (T,) and (S,) -> (T, S); (B, T) and (B, S) -> (B, T, S)."""
    return k_ids[..., None, :] - q_ids[..., :, None]


def slopes(n_heads: int, most: float = 8.0) -> list[float]:
    """ALiBi's slopes: 2^(-8i/n) for a power of two; else those of the next lower one, then every other of the next."""
    # The authors' `get_slopes`: a geometric series is defined for a power of two, and other numbers interpolate.
    lower = 2 ** int(math.log2(n_heads))
    first = [2.0 ** (-most * i / lower) for i in range(1, lower + 1)]
    return first + [2.0 ** (-most / 2 * i / lower) for i in range(1, 2 * (n_heads - lower), 2)]


@register("position", "alibi")
class Alibi(Absolute):
    """Attention with linear biases (Press et al. 2021, arXiv:2108.12409): -slope |q - k| on the scores, never above 0.

    bias (N, T, S), or (B, N, T, S) where positions differ by sample, in float32.
    """

    has_bias = True
    relative = True
    receding = True
    telling = ({"max_bias": 5.0}, {"scaled": True, "rounded": True, "max_bias": 5.0})

    def __init__(
        self,
        sizes: Sizes,
        /,
        *,
        max_bias: float = 8.0,  # the smallest slope is 2^-max_bias
        scaled: bool = False,  # multiplied by the factor of q.k (Falcon)
        rounded: bool = False,  # slopes, and slope times position, in bfloat16 (Falcon); for what looks back only
        skip_padding: bool = False,  # positions count tokens that are not padding (BLOOM, Falcon)
    ):
        super().__init__()
        self.slopes, self.rounded, self._skip_padding = slopes(sizes.n_heads, max_bias), rounded, skip_padding
        scale = sizes.head_dim**-0.5 if sizes.attention.scale is None else sizes.attention.scale
        self.factor = scale if scaled else None
        self.relative = not rounded

    def ids(self, ctx: Context) -> Tensor:
        # Rounded products depend on where a text begins, so each document of a row counts from its own first token.
        if self.rounded:
            return super().ids(ctx)
        return tokens_before(ctx) if self._skip_padding else Position.ids(self, ctx)

    def prepare(self, q_ids: Tensor, k_ids: Tensor) -> Tensor:
        # Made here from numbers: a buffer of a module that is built on the meta device would have no values.
        slope = torch.tensor(self.slopes, device=k_ids.device)
        if self.rounded:
            # Falcon's build_alibi_tensor multiplies in bfloat16, so a difference of
            # rounded products, not a rounded distance, is what its weights know.
            q, k = (slope.bfloat16()[:, None] * ids[..., None, :] for ids in (q_ids, k_ids))
            bias = k.float()[..., None, :] - q.float()[..., :, None]
        else:
            # |q - k|: the paper has causal models only, in which keys lie on one side.
            bias = -slope[:, None, None] * distances(q_ids, k_ids).abs().float()[..., None, :, :]
        # Falcon adds ALiBi to q.k first and scales both (`inv_norm_factor`); BLOOM and MPT scale q.k alone.
        return bias if self.factor is None else bias * self.factor

    def bias(self, q_BNTH: Tensor, k_BKSH: Tensor, scale: float, state: Tensor) -> Tensor:
        return state


@register("position", "t5_bias")
class T5Bias(Position):
    """T5's relative bias (Raffel et al. 2019, arXiv:1910.10683): a learnt scalar a head for each bucket of distances.

    Half of the buckets are single distances, the rest grow by a factor up to `max_distance`; in a stack that looks both
    ways, half of all are for what comes after. bias (N, T, S), or (B, N, T, S) where positions differ by sample.
    """

    has_bias = True
    relative = True
    small = {"buckets": 8, "max_distance": 10}
    telling: ClassVar[tuple[dict[str, int], ...]] = ({"buckets": 6}, {"max_distance": 30})

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
        # One table a stack: T5's checkpoints have it in block 0, whose bias all later blocks are handed.
        self.table = Table(buckets, sizes.n_heads, role="position")

    def bucket(self, distance: Tensor) -> Tensor:
        """Key minus query -> its bucket."""
        if self.causal:
            n, first = self.buckets, torch.zeros_like(distance)
            far = (-distance).clamp(min=0)
        else:
            # Keys behind the query have the upper half of the table, as `relative_position > 0` has in T5.
            n, first = self.buckets // 2, (distance > 0).long() * (self.buckets // 2)
            far = distance.abs()
        single = n // 2
        # log 0 is -inf, of which the cast to a whole number is undefined; near distances take `far` itself below.
        grown = torch.log(far.clamp(min=1).float() / single) / math.log(self.max_distance / single) * (n - single)
        # Truncated, not rounded, in float32: buckets near a border would differ from T5's otherwise.
        return first + torch.where(far < single, far, (single + grown.long()).clamp(max=n - 1))

    def prepare(self, q_ids: Tensor, k_ids: Tensor) -> Tensor:
        return self.table(self.bucket(distances(q_ids, k_ids))).movedim(-1, -3)

    def bias(self, q_BNTH: Tensor, k_BKSH: Tensor, scale: float, state: Tensor) -> Tensor:
        return state
