"""Sizes and traits of a model: what several parts of a slot have in common, so that it survives a swap.

These dataclasses are the schema of the config node `model` and, as plain values, what parts are
built from. No torch here: the config is composed without it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Optional

MOST_LAYERS = 10_000  # of a stack: laying out a thousand takes a second


def divisors(n: int) -> list[int]:
    """In order. Of a number above 1e10 those are left out that lie between 100,000 and n / 100,000: no size is one."""
    # Each divisor up to the root comes with its partner; a number that was typed with 15 digits must not take minutes.
    low = [d for d in range(1, min(math.isqrt(max(n, 0)), 100_000) + 1) if n % d == 0]
    return sorted({*low, *(n // d for d in low)})


def divisors_shown(n: int) -> str:
    """For a message: at most twelve."""
    found = [str(d) for d in divisors(n)]
    return ", ".join(found if len(found) <= 12 else [*found[:11], f"... {found[-1]}"])


@dataclass
class AttentionTraits:
    """Traits of every attention part (`model.attention.*`)."""

    qkv_bias: bool = False  # bias on the q, k and v projections
    out_bias: bool = False  # bias on the output projection
    qk_norm: Optional[str] = None  # a norm on queries and keys. "head": over each head's width, the same for all heads;
    # "each_head": one of its own for each head, without bias; "full": over the whole projection
    scale: Optional[float] = None  # factor on q.k; None: width of a query head ** -0.5
    scale_over_layer: bool = False  # that factor over the layer's number, which counts from 1
    softcap: Optional[float] = None  # s -> c tanh(s / c), before the mask
    sink: bool = False  # one learnt logit a head that takes weight and gives nothing
    clip_qkv: Optional[float] = None  # clamp q, k and v to [-c, c]
    dropout: float = 0.0  # on the attention weights


@dataclass
class FFNTraits:
    """Traits of every feed-forward part (`model.ffn.*`)."""

    bias: bool = False
    dropout: float = 0.0  # on the inner activation


@dataclass
class MoETraits:
    """Traits of every mixture of experts (`model.moe.*`)."""

    n_experts: int = 8
    per_token: int = 2  # experts a token visits
    ffn_dim: Optional[int] = None  # width of one expert; None: model.ffn_dim // per_token, a multiple of 8
    n_shared: int = 0  # experts that every token visits, as one FFN of n_shared * ffn_dim
    shared_dim: Optional[int] = None  # width of that FFN where it is not n_shared * ffn_dim
    shared_gate: bool = False  # the shared FFN's output times sigmoid(w.x) (Qwen2-MoE)
    renormalise: bool = True  # the chosen experts' weights are divided by their sum
    scale: float = 1.0  # factor on the routed output (DeepSeek's routed_scaling_factor)
    balance: float = 0.001  # coefficient of the load-balance loss, 0: none
    z: float = 0.0  # coefficient of the router z-loss


@dataclass
class ModelConfig:
    """The config node `model`."""

    family: str = "custom"
    vocab_size: Optional[int] = None  # None: the tokenizer's, rounded up to a multiple of 64
    max_positions: Optional[int] = None  # rows of a learned position table; None: data.seq_len
    dim: int = 128
    n_layers: int = 4
    n_heads: int = 4
    n_kv_heads: Optional[int] = None  # None: each part's own default (mha: n_heads; gqa: n_heads / 4)
    head_dim: Optional[int] = None  # None: dim / n_heads
    ffn_dim: Optional[int] = None  # None: 4 * dim
    norm_eps: float = 1e-5
    dropout: float = 0.0  # on the embedding and on each sublayer's output
    tie_embeddings: bool = False
    token_types: int = 0  # rows of the table of segment embeddings, 0: none
    logit_scale: Optional[float] = None
    logit_softcap: Optional[float] = None
    attention: AttentionTraits = field(default_factory=AttentionTraits)
    ffn: FFNTraits = field(default_factory=FFNTraits)
    moe: MoETraits = field(default_factory=MoETraits)


@dataclass(frozen=True)
class Sizes:
    """The values that a part is built from: the model's sizes and traits for its stack and kind, resolved."""

    dim: int
    n_layers: int  # layers that are executed in this stack
    n_heads: int
    n_kv_heads: int | None
    head_dim: int
    ffn_dim: int
    vocab_size: int
    max_positions: int
    norm_eps: float
    dropout: float = 0.0
    tie_embeddings: bool = False
    token_types: int = 0
    logit_scale: float | None = None
    logit_softcap: float | None = None
    attention: AttentionTraits = field(default_factory=AttentionTraits)
    ffn: FFNTraits = field(default_factory=FFNTraits)
    moe: MoETraits = field(default_factory=MoETraits)
    layer: int = 0  # index of the stored layer
    stack: str = "main"
    source_dim: int = 0  # width of what a cross-attention reads; 0: dim
    causal: bool = True  # the stack's mask never looks ahead
    sees_all: bool = False  # the stack's mask hides nothing
    rotary_dim: int = 0  # width that a position part rotates: the attention part says it
    embed_dim: int = 0  # width in which a position part embeds: the embedding part says it
    gain: float = 1.0  # for an init: what the owner of a table multiplies its vectors by

    def but(self, **changes: Any) -> Sizes:
        return replace(self, **changes)
