"""Arithmetic for conf/: how a family derives its widths from the ladder's dim, layers and heads.

At a rung all families have the same depth and width, and an FFN such that the parameters active in a
layer come to those of a plain transformer: 12 dim^2 (4 dim^2 of attention, 8 dim^2 of FFN).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from llmlab.sizes import divisors


def kv_heads(n_heads: int, group: int) -> int:
    """The largest divisor of n_heads that is at most n_heads / group, at least 1."""
    return max(d for d in divisors(n_heads) if d <= max(1, n_heads // group))


def gqa(dim: int, n_heads: int, group: int) -> int:
    """Parameters of grouped-query attention with heads of width dim / n_heads."""
    kv = kv_heads(n_heads, group)
    return 2 * dim * dim + 2 * dim * dim * kv // n_heads


def matched(dim: int, attention: int, matrices: int, extra: int = 0) -> int:
    """FFN width such that attention + extra + matrices * dim * width = 12 dim^2, a multiple of 8."""
    # A multiple of 8, as tensor cores want it; 8 where the attention alone has spent the parameters.
    return max(8, round((12 * dim * dim - attention - extra) / (matrices * dim) / 8) * 8)


def cycle(many: str, count: int, one: str, n_layers: int) -> list[str]:
    """`count` layers of kind `many`, then one of kind `one`; in a shallower model fewer of the many."""
    # Gemma 3's five local layers to a global one would leave a model of four layers without the global.
    return [many] * max(1, min(count, n_layers - 1)) + [one]


def rate_by_width(rate: float, width: int, dim: int, most: float = math.inf) -> float:
    """A learning rate that is `rate` at a width, at another width: Adam's goes with 1 / dim (muP: Yang et al. 2022,
    arXiv:2203.03466, table 3), but not above `most`. Three digits."""
    return min(most, float(f"{rate * width / dim:.3g}"))


def std_by_width(std: float, width: int, dim: int) -> float:
    """A deviation of first values that is `std` at a width and above: below it goes with dim^-1/2, so that what a matrix
    gives out is as large (muP, table 3). Three digits."""
    # Above: BERT's large model has 0.02 too.
    return float(f"{std * max(1.0, width / dim) ** 0.5:.3g}")


def register() -> None:
    from omegaconf import OmegaConf

    resolvers: dict[str, Callable[..., Any]] = {
        "mul": lambda *factors: _product(factors),
        # OmegaConf has no arithmetic, and hands the numbers of an interpolation over as int or float.
        "div": lambda a, b: a // b,
        # An odd number of layers: the decoder, which also cross-attends, gets the one more.
        "half_up": lambda a: a - a // 2,
        # T5 multiplies the decoder's output by d_model^-0.5 before a tied table reads it (t5/modeling_t5.py).
        "rsqrt": lambda x: x**-0.5,
        "rate_by_width": rate_by_width,
        "std_by_width": std_by_width,
        "repeat": lambda value, times: [value] * times,
        "kv": kv_heads,
        "gqa": gqa,
        "mla": mla,
        "matched": matched,
        "cycle": cycle,
    }
    # OmegaConf's resolvers are one table a process; a name that is there already is a ValueError without replace.
    for name, function in resolvers.items():
        OmegaConf.register_new_resolver(name, function, replace=True)


def _product(factors: tuple) -> float:
    product = 1
    for factor in factors:
        product *= factor
    return product


def mla(dim: int, n_heads: int) -> int:
    """Parameters of multi-head latent attention with its default ranks at heads of width dim / n_heads."""
    head = dim // n_heads
    # DeepSeek-V2's ratios (section 2.1.4): d_c = 4 d_h, and rotary keys half as wide as a head; rotations need an even
    # width.
    kv_rank, rope = 4 * head, max(2, head // 4 * 2)
    queries = dim * n_heads * (head + rope)
    return queries + dim * (kv_rank + rope) + kv_rank * n_heads * 2 * head + n_heads * head * dim
