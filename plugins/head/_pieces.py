"""Pieces that several heads share: activations, a transform before the scores, pooling."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmlab.sizes import Sizes
from llmlab.slots import Context

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


class Transformed(nn.Module):
    """A head that may pass what it reads through `dense`, an activation and `norm` first."""

    dense: nn.Module | None
    norm: nn.Module | None
    mix: LayerMix | None
    act: Callable[[Tensor], Tensor]

    def set_mixed(self, mixed: bool, sizes: Sizes) -> None:
        """Read a mix of all layers in place of the last one."""
        self.every_layer = mixed
        # What the first layer reads is one of them, as ELMo's tokens are.
        self.mix = LayerMix(sizes.n_layers + 1) if mixed else None

    def transform(self, h: Tensor) -> Tensor:
        if self.dense is not None:
            h = self.act(self.dense(h))
        return h if self.norm is None else self.norm(h)


class LayerMix(nn.Module):
    """Layers mixed with weights that are learnt (ELMo: Peters et al. 2018, arXiv:1802.05365, eq. 1): (n, ..., D) -> (..., D).

    gain x the sum over j of softmax(weights)_j h_j, at first the mean.
    """

    constants = {"weights": 0.0, "gain": 1.0}

    def __init__(self, n_states: int):
        super().__init__()
        self.weights = nn.Parameter(torch.empty(n_states))
        # Not of shape (): FSDP2 has no scalar parameters.
        self.gain = nn.Parameter(torch.empty(1))

    def forward(self, h: Tensor) -> Tensor:
        if len(h) != len(self.weights):
            raise ValueError(f"a mix of {len(self.weights)} hidden states was given {len(h)}")
        shares = self.gain.float() * self.weights.float().softmax(0)
        return torch.tensordot(shares.to(h.dtype), h, 1)


def read(h_BTD: Tensor, ctx: Context, pool: str, skip: int | None = None, only: int | None = None) -> Tensor:
    """One vector a text, (B, T, D) -> (B, D): that of its first token, of its last, or the mean of those that count.

    Those count that are not padding; with `skip` those of another id than this; with `only` those of this id. Both ids
    are of the text that an encoder has read where there is one.
    """
    if pool == "first":
        return h_BTD[:, 0]
    if pool == "end":
        return h_BTD[:, -1]
    counts_BT = _counts(h_BTD, ctx, skip, only)
    if pool == "mean":
        # A mean over the texts' own lengths: h_BTD.mean(1) would average padding in.
        weights_BT = counts_BT.to(h_BTD.dtype)
        return (h_BTD * weights_BT[..., None]).sum(1) / weights_BT.sum(1, keepdim=True)
    where = torch.arange(counts_BT.shape[1], device=h_BTD.device)
    # The greatest index, not the number of tokens less one: generation pads on the left.
    last_B = torch.where(counts_BT, where, 0).amax(1)
    return h_BTD[torch.arange(len(h_BTD), device=h_BTD.device), last_B]


def _counts(h_BTD: Tensor, ctx: Context, skip: int | None, only: int | None) -> Tensor:
    if skip is None and only is None:
        if ctx.valid is None:
            return torch.ones(h_BTD.shape[:2], dtype=torch.bool, device=h_BTD.device)
        # `valid` has the cache's keys too, hidden states are those of the new tokens.
        return ctx.valid[:, ctx.offset :]
    # BART looks for eos among the encoder's ids and reads the decoder there (`eos_mask` of bart/modeling_bart.py).
    ids_BT = ctx.data.get("source_ids", ctx.ids)
    assert ids_BT is not None
    if only is not None:
        return ids_BT.eq(only)
    assert skip is not None
    return ids_BT.ne(skip)
