"""Visibility of keys: mask & window & documents & valid keys & the caller's own mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llmlab.slots import Context, Mask, Window

Pattern = Literal["causal", "full"] | None


@dataclass(frozen=True)
class Visible:
    """Self-attention's visibility in one forward (`llmlab.slots.Seen`)."""

    mask: Mask
    window: Window
    ctx: Context

    @property
    def documents(self) -> Tensor | None:
        return self.ctx.documents

    @property
    def within(self) -> Pattern:
        return self.mask.pattern if self.documents is not None and self._plain and not self.ctx.offset else None

    @property
    def _plain(self) -> bool:
        """Nothing is hidden by padding, by the caller or by the window."""
        return self.ctx.valid is None and self.ctx.allowed is None and self.window.covers(self.ctx.keys)

    @property
    def pattern(self) -> Pattern:
        ctx = self.ctx
        if ctx.documents is not None or not self._plain:
            return None
        if self.mask.pattern == "causal" and ctx.offset:
            # One new token sees all before it. With more, a causal kernel would align queries and keys at the first position
            # (PyTorch's is_causal does), not at the last as a cache needs.
            return "full" if ctx.length == 1 else None
        return self.mask.pattern

    @property
    def one_for_all(self) -> bool:
        ctx = self.ctx
        return not self.mask.needs and ctx.valid is None and ctx.documents is None and ctx.allowed is None

    def dense(self) -> Tensor:
        ctx = self.ctx
        device = None if ctx.ids is None else ctx.ids.device
        k = torch.arange(ctx.keys, device=device)[None, :]
        q = k[:, ctx.offset :].T
        seen = self.mask.allowed(q, k, ctx.data) & self.window.allowed(q, k, ctx.data)
        if ctx.documents is not None:
            seen = seen & (ctx.documents[:, ctx.offset :, None] == ctx.documents[:, None, :])
        if ctx.valid is not None:
            shown = seen & ctx.valid[:, None, :]
            # Padding sees itself where it would see nothing: softmax of a row of -inf is NaN.
            seen = shown | (seen & (q == k) & ~shown.any(-1, keepdim=True))
        if ctx.allowed is not None:
            seen = seen & ctx.allowed
        while seen.dim() < 3:
            seen = seen[None]
        # A dimension of 1 for heads, which all see the same; expand adds rows without memory.
        return seen[:, None].expand(-1, 1, ctx.length, ctx.keys)


@dataclass(frozen=True)
class VisibleSource:
    """Cross-attention's visibility: every valid position of the source."""

    valid: Tensor | None  # (B, S)
    length: int
    # Without annotations, so that both are attributes of the class and no fields of the dataclass.
    documents = None
    within = None

    @property
    def pattern(self) -> Pattern:
        return "full" if self.valid is None else None

    @property
    def one_for_all(self) -> bool:
        return self.valid is None

    def dense(self) -> Tensor:
        assert self.valid is not None
        return self.valid[:, None, None, :].expand(-1, 1, self.length, -1)
