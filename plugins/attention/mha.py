"""Attention with a key and value head for each query head, for groups of them, or for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import LayerCache, Linear, Score, Term, View


def kv_heads(sizes: Sizes, share: str) -> int:
    """Key-value heads: of groups, model.n_kv_heads, or else the divisor of n_heads that is nearest below a quarter."""
    n = sizes.n_heads
    if share == "groups":
        # LLaMA 3 8B and Mistral 7B have this ratio, 8 heads of keys for 32 of queries.
        return sizes.n_kv_heads or max(d for d in range(1, max(n // 4, 1) + 1) if n % d == 0)
    return {"none": n, "all": 1}[share]


class HeadNorms(nn.ModuleList):
    """A norm without bias for each head: (..., heads, H) -> (..., heads, H) (StableLM 2)."""

    def __init__(self, norm: Callable[[int, float], nn.Module], heads: int, head_dim: int, eps: float):
        super().__init__(norm(head_dim, eps) for _ in range(heads))
        for own in self:
            # F.layer_norm takes None for "no bias"; the attribute has to be there.
            own.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        # StableLM 2 12B's file holds a weight a head (`q_layernorm.norms.0` ...), for which (heads, H) would be no
        # tensor.
        return torch.stack([norm(head) for norm, head in zip(self, x.unbind(-2), strict=True)], -2)


@register("attention", "mqa", share="all")
@register("attention", "gqa", share="groups")
@register("attention", "mha")
class MultiHeadAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, arXiv:1706.03762) whose query heads may share keys and values.

    mha: Multi-head attention (Vaswani et al. 2017, arXiv:1706.03762): keys and values for each query head.
    gqa: Grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245): model.n_kv_heads of them, or n_heads / 4.
    mqa: Multi-query attention (Shazeer 2019, arXiv:1911.02150): one head of keys and values for all.

    (B, T, D) -> (B, T, D). With `source` (B, S, D) it is cross-attention: keys and values come from there, unrotated.
    """

    textbook = True
    unused = {"mha": ("n_kv_heads",), "mqa": ("n_kv_heads",), "gqa": ()}

    def __init__(
        self,
        sizes: Sizes,
        norm: Callable[[int, float], nn.Module],
        /,
        *,
        share: Literal["none", "groups", "all"] = "none",  # which query heads share keys and values
    ):
        super().__init__()
        traits = sizes.attention
        self.n_heads, self.head_dim = sizes.n_heads, sizes.head_dim
        self.n_kv_heads = kv_heads(sizes, share)
        # Groups are of equal size in every kernel: `repeat_interleave` and PyTorch's enable_gqa both take a whole ratio only.
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"model.n_kv_heads={self.n_kv_heads} does not divide model.n_heads={self.n_heads}")
        self.pair_width = 2 * self.n_heads * self.head_dim
        q_dim, kv_dim = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        self.q = Linear(sizes.dim, q_dim, traits.qkv_bias, role="q")
        self.k = Linear(sizes.source_dim or sizes.dim, kv_dim, traits.qkv_bias, role="k")
        self.v = Linear(sizes.source_dim or sizes.dim, kv_dim, traits.qkv_bias, role="v")
        self.out = Linear(q_dim, sizes.dim, traits.out_bias, role="out")
        if traits.qk_norm not in (None, "head", "each_head", "full"):
            raise ValueError(
                f"model.attention.qk_norm must be head, each_head, full or null, but is {traits.qk_norm!r}"
            )
        self.qk_norm, self.clip = traits.qk_norm, traits.clip_qkv
        # Qwen3 and Gemma 3 norm every head with one weight; OLMo 2 and
        # OLMoE norm the whole projection before it is cut into heads.
        if self.qk_norm == "each_head":
            self.q_norm: nn.Module = HeadNorms(norm, self.n_heads, self.head_dim, sizes.norm_eps)
            self.k_norm: nn.Module = HeadNorms(norm, self.n_kv_heads, self.head_dim, sizes.norm_eps)
        elif self.qk_norm is not None:
            self.q_norm = norm(self.head_dim if self.qk_norm == "head" else q_dim, sizes.norm_eps)
            self.k_norm = norm(self.head_dim if self.qk_norm == "head" else kv_dim, sizes.norm_eps)
        # gpt-oss learns one logit a head that joins the softmax's denominator (`sinks` of gpt_oss/modeling_gpt_oss.py).
        self.sink = nn.Parameter(torch.empty(self.n_heads)) if traits.sink else None
        # The width of a head isn't the scale everywhere: T5 and GPT-Neo have 1, Gemma 2 27B 144^-0.5 with heads of 128.
        scale = self.head_dim**-0.5 if traits.scale is None else traits.scale
        # GPT-2's option scale_attn_by_inverse_layer_idx, from Mistral's (Stanford CRFM) training runs.
        scale = scale / (sizes.layer + 1) if traits.scale_over_layer else scale
        self.score = Score(scale, traits.softcap, traits.dropout)

    def forward(
        self, x_BTD: Tensor, view: View, source_BSD: Tensor | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        q_BNTH = self._heads(self.q(x_BTD), "q_norm")
        if source_BSD is None:
            k_BKTH, v_BKTH = self._keys_values(x_BTD)
            o_BNTH = view.attend(q_BNTH, k_BKTH, v_BKTH, self.score, sink=self.sink, cache=cache)
        else:
            # The source does not grow: its keys and values are projected at the first token, and read afterwards.
            if cache is not None and cache.length:
                k_BKSH, v_BKSH = cache.read()
            else:
                k_BKSH, v_BKSH = self._keys_values(source_BSD)
                if cache is not None:
                    k_BKSH, v_BKSH = cache.update(k_BKSH, v_BKSH)
            # `weigh`, not `attend`: distances between a target's tokens and a source's mean nothing, so nothing is turned.
            o_BNTH = view.weigh([Term(q_BNTH, k_BKSH)], v_BKSH, self.score, self.sink)
        return self.out(o_BNTH.transpose(1, 2).flatten(2))

    def project(self, x_LD: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors that are no tokens as queries (N, L, H) and keys (K, L, H)."""
        return self._heads(self.q(x_LD[None]), "q_norm")[0], self._heads(self.k(x_LD[None]), "k_norm")[0]

    def _keys_values(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        return self._heads(self.k(x_BSD), "k_norm"), self._heads(self.v(x_BSD), None)

    def _heads(self, x: Tensor, norm: str | None) -> Tensor:
        """(B, T, heads * H) -> (B, heads, T, H), normed and clipped."""
        # Before the heads are split: the weight is as wide as the projection (olmo2/modeling_olmo2.py).
        if norm is not None and self.qk_norm == "full":
            x = getattr(self, norm)(x)
        x = x.unflatten(-1, (-1, self.head_dim))
        if norm is not None and self.qk_norm in ("head", "each_head"):
            x = getattr(self, norm)(x)
        # Behind the norm, before the rotation, and values too, as in OLMoE, which has both (olmoe/modeling_olmoe.py).
        if self.clip is not None:
            x = x.clamp(-self.clip, self.clip)
        return x.transpose(1, 2)
