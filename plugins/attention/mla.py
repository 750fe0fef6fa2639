"""Attention whose keys and values are kept as one small latent vector."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import LayerCache, Linear, Score, Term, View

# Not the model's norm_eps: the reference builds both latents' norms without it, so that RMSNorm's default holds.
LATENT_EPS = 1e-6


@register("attention", "mla")
class MultiHeadLatentAttention(nn.Module):
    """Multi-head latent attention (DeepSeek-AI 2024, arXiv:2405.04434): kv_rank + rope_dim numbers a token are cached.

    (B, T, D) -> (B, T, D), or from `source` (B, S, D) as cross-attention. A query head is [nope_dim | rope_dim] wide;
    only the latter is rotated, against one key that all heads share. The rest of the keys, and the values, are
    projections of the normed latent. model.attention.qkv_bias puts a bias on the projections down to the latents.
    """

    unused = ("n_kv_heads", "attention.qk_norm", "attention.clip_qkv")
    latents = ("q_down", "kv_down")
    telling = ({"q_rank": 11}, {"kv_rank": 10, "nope_dim": 6, "rope_dim": 2, "v_dim": 5})

    @staticmethod
    def rotary_width(
        sizes: Sizes,
        *,
        q_rank: int | None = None,
        kv_rank: int | None = None,
        nope_dim: int | None = None,
        rope_dim: int | None = None,
        v_dim: int | None = None,
    ) -> int:
        # DeepSeek-V2 and V3 have this ratio: 64 rotated beside heads of 128.
        return rope_dim or max(2, sizes.head_dim // 4 * 2)

    def __init__(
        self,
        sizes: Sizes,
        norm: Callable[[int, float], nn.Module],
        /,
        *,
        q_rank: int | None = None,  # width of the queries' own latent; None: they have none
        kv_rank: int | None = None,  # width of the latent of keys and values; None: 4 head_dim
        nope_dim: int | None = None,  # width of a head that is not rotated; None: head_dim
        rope_dim: int | None = None,  # width of a head that is rotated; None: half of head_dim, made even
        v_dim: int | None = None,  # width of a value head; None: head_dim
    ):
        super().__init__()
        given = {"q_rank": q_rank, "kv_rank": kv_rank, "nope_dim": nope_dim, "rope_dim": rope_dim, "v_dim": v_dim}
        if low := [f"attention.{k}={v}" for k, v in given.items() if v is not None and v < 1]:
            raise ValueError(f"{' and '.join(low)} must be at least 1")
        traits, n = sizes.attention, sizes.n_heads
        self.n_heads = n
        self.kv_rank = kv_rank or 4 * sizes.head_dim
        self.nope_dim = nope_dim or sizes.head_dim
        self.rope_dim = self.rotary_width(sizes, rope_dim=rope_dim)
        self.v_dim = v_dim or sizes.head_dim
        q_dim = self.nope_dim + self.rope_dim
        self.pair_width = n * (q_dim + self.v_dim)
        self.compresses_q = q_rank is not None
        if q_rank is not None:
            # `attention_bias` of DeepSeek's config.json is that of q_a_proj,
            # kv_a_proj_with_mqa and o_proj; the projections up have none.
            self.q_down = Linear(sizes.dim, q_rank, traits.qkv_bias, role="q")
            self.q_norm = norm(q_rank, LATENT_EPS)
            self.q_up = Linear(q_rank, n * q_dim, role="q")
        else:
            self.q = Linear(sizes.dim, n * q_dim, role="q")
        # One linear for the latent and the shared key: the rows of `kv_a_proj_with_mqa` are in this order.
        self.kv_down = Linear(sizes.source_dim or sizes.dim, self.kv_rank + self.rope_dim, traits.qkv_bias, role="k")
        self.kv_norm = norm(self.kv_rank, LATENT_EPS)
        self.kv_up = Linear(self.kv_rank, n * (self.nope_dim + self.v_dim), role="v")
        self.out = Linear(n * self.v_dim, sizes.dim, traits.out_bias, role="out")
        self.sink = nn.Parameter(torch.empty(n)) if traits.sink else None
        # By the whole query's width. The square of mscale, which `yarn_apply_mscale` of deepseek_v3 multiplies in, is
        # in model.attention.scale.
        scale = q_dim**-0.5 if traits.scale is None else traits.scale
        scale = scale / (sizes.layer + 1) if traits.scale_over_layer else scale
        self.score = Score(scale, traits.softcap, traits.dropout)

    def forward(
        self, x_BTD: Tensor, view: View, source_BSD: Tensor | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        q_nope, q_rope = self._queries(x_BTD)
        if source_BSD is None:
            terms, latent = self._rotated(q_rope, *self._latents(x_BTD), view, cache)
        else:
            if cache is not None and cache.length:
                latent, k_rope = cache.read()
            else:
                latent, k_rope = self._latents(source_BSD)
                if cache is not None:
                    latent, k_rope = cache.update(latent, k_rope)
            terms = [Term(q_rope, k_rope)]
        kv_BNSH = self.kv_up(latent[:, 0]).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        # `kv_b_proj` has keys and values of a head side by side, head after head, not all keys first.
        k_nope, v_BNSH = kv_BNSH.split([self.nope_dim, self.v_dim], -1)
        terms = [
            Term(
                torch.cat([q_nope, q], -1),
                # The shared key takes memory for each head only here, in
                # the product that kernels want whole; cached it is one.
                torch.cat([k_nope, k.expand(-1, self.n_heads, -1, -1)], -1),
                region,
            )
            for q, k, region in terms
        ]
        o_BNTH = view.weigh(terms, v_BNSH, self.score, self.sink)
        return self.out(o_BNTH.transpose(1, 2).flatten(2))

    def _queries(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, T, nope_dim) and (B, N, T, rope_dim)."""
        q = self.q_up(self.q_norm(self.q_down(x_BTD))) if self.compresses_q else self.q(x_BTD)
        q_BNTH = q.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        q_nope, q_rope = q_BNTH.split([self.nope_dim, self.rope_dim], -1)
        return q_nope, q_rope

    def _latents(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """The normed latent (B, 1, S, kv_rank) and the key that all heads share (B, 1, S, rope_dim), as projected."""
        latent, k_rope = self.kv_down(x_BSD).split([self.kv_rank, self.rope_dim], -1)
        # `kv_a_layernorm` covers the latent only; the shared key is rotated as it was projected.
        return self.kv_norm(latent)[:, None], k_rope[:, None]

    def _rotated(
        self, q_rope: Tensor, latent: Tensor, k_rope: Tensor, view: View, cache: LayerCache | None
    ) -> tuple[list[Term], Tensor]:
        """Terms of the rotary part over all S keys, and all S latents."""
        # Cached before the projection up, as in transformers: for DeepSeek-V3
        # 512 + 64 numbers a token instead of 128 x (192 + 128).
        if cache is not None and not view.position.caches_rotated:
            latent, k_rope = cache.update(latent, k_rope)
        terms = view.rotate(q_rope, k_rope)
        if cache is not None and view.position.caches_rotated:
            latent, k_rope = cache.update(latent, terms[0].k_BKSH)
            terms = [term._replace(k_BKSH=k_rope) for term in terms]
        return terms, latent
