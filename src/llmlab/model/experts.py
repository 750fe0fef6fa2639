"""Mixture of experts: dispatch, the experts as grouped products, and experts that every token visits.

n tokens, k experts a token, E experts. A moe part only routes; an FFN part is written once and
built with `GroupedLinear` here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmlab.sizes import FFNTraits, Sizes
from llmlab.slots import Aux, Choice, Linear, Role, Routing, no_reduce


class GroupedLinear(nn.Module):
    """The same linear of all experts: weight (E, out, in). Rows are sorted by expert; `groups` (E,) int32 their ends.

    One `grouped_mm` where torch has it for the device, dtype and widths (rows of a multiple of 16 bytes); else a product
    an expert. `dropout` is on its input.
    """

    def __init__(
        self,
        n_experts: int,
        in_features: int,
        out_features: int,
        bias: bool = False,
        *,
        role: Role,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.dropout = dropout
        self.n_experts, self.in_features, self.out_features, self.role = n_experts, in_features, out_features, role
        # (E, out, in) as nn.Linear has (out, in), so that an expert's slice is a linear's
        # weight; grouped_mm wants its transpose.
        self.weight = nn.Parameter(torch.empty(n_experts, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(n_experts, out_features)) if bias else None

    def forward(self, x: Tensor, groups: Tensor) -> Tensor:
        weight: Tensor = self.weight
        bias = self.bias
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        # Autocast knows nn.Linear's operations but not grouped_mm, which would compute in float32 (torch 2.13).
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(dtype), weight.to(dtype)
        if can_group(x, weight):
            y = F.grouped_mm(x, weight.transpose(-2, -1), offs=groups)
        else:
            # tolist waits for a GPU, which comes here in float32, in float16 or with odd widths only.
            ends = groups.tolist()
            starts = [0, *ends[:-1]]
            y = torch.cat([x[a:b] @ weight[e].T for e, (a, b) in enumerate(zip(starts, ends, strict=True))])
        if bias is not None:
            # right=True: row 2 of ends [2, 2, 4] is the third expert's, and the second, which is empty, gets none.
            expert = torch.searchsorted(groups, torch.arange(len(x), device=x.device, dtype=groups.dtype), right=True)
            y = y + bias[expert].to(y.dtype)
        return y


def can_group(x: Tensor, weight: Tensor) -> bool:
    """True if torch's grouped_mm takes these tensors: it refuses rows that are no multiple of 16 bytes, and float32 on GPUs."""
    known = (torch.bfloat16,) if x.is_cuda else (torch.bfloat16, torch.float32)
    if not hasattr(F, "grouped_mm") or x.dtype not in known:
        return False
    return all(width * x.element_size() % 16 == 0 for width in weight.shape[1:])


def linears(make: Callable[..., nn.Module], traits: FFNTraits) -> Callable[..., nn.Module]:
    """The `linear` that an FFN part is given: `make` with the model's bias, and its dropout on the input of the last one."""

    def linear(n_in: int, n_out: int, *, role: Role) -> nn.Module:
        return make(n_in, n_out, traits.bias, role=role, dropout=traits.dropout if role == "ffn_out" else 0.0)

    return linear


class MixtureOfExperts(nn.Module):
    """Each token goes to k of E experts and to the shared one: y = scale * sum_i w_i FFN_i(x) + gate * FFN_shared(x).

    Where experts choose (`Choice`), i runs over those that have chosen the token.

    forward: (B, T, D), valid (B, T) or None -> (B, T, D), Aux. `total` is what routers sum over ranks with in training.
    """

    total: Callable[[Tensor], Tensor]

    def __init__(self, sizes: Sizes, router: Callable[[Sizes], nn.Module], ffn: Callable[..., nn.Module]):
        super().__init__()
        moe = sizes.moe
        self.n_experts, self.scale = moe.n_experts, moe.scale
        self.total = no_reduce
        self.router = router(sizes)
        self.per_token: float = getattr(self.router, "per_token", moe.per_token)
        self.experts = ffn(sizes.dim, moe.ffn_dim, linears(partial(GroupedLinear, moe.n_experts), sizes.ffn))
        shared_dim = moe.shared_dim or moe.n_shared * (moe.ffn_dim or 0)
        self.shared = ffn(sizes.dim, shared_dim, linears(Linear, sizes.ffn)) if shared_dim else None
        self.shared_gate = Linear(sizes.dim, 1, role="router") if moe.shared_gate and shared_dim else None

    def forward(self, x_BTD: Tensor, valid: Tensor | None) -> tuple[Tensor, Aux]:
        x_nD = x_BTD.reshape(-1, x_BTD.shape[-1])
        valid_n = None if valid is None else valid.reshape(-1)
        routing = self.router(x_nD, valid_n, self.total if self.training else no_reduce)
        gather = self._chosen if isinstance(routing, Choice) else self._sent
        y_nD, load = gather(x_nD, routing, valid_n)
        if self.scale != 1.0:  # DeepSeek-V2's routed_scaling_factor, on the routed experts alone
            y_nD = y_nD * self.scale
        if self.shared is not None:
            shared = self.shared(x_nD)
            if self.shared_gate is not None:  # Qwen2-MoE
                shared = shared * torch.sigmoid(self.shared_gate(x_nD))
            y_nD = y_nD + shared
        return y_nD.view_as(x_BTD).to(x_BTD.dtype), Aux(routing.loss, load)

    def _sent(self, x_nD: Tensor, routing: Routing, valid_n: Tensor | None) -> tuple[Tensor, Tensor]:
        """(n, D), and the valid tokens of each expert (E,)."""
        weights_nk, experts_nk, _ = routing
        n, k = experts_nk.shape
        # Rows sorted by expert. Stable, so that an expert's rows are in the order of the text, whatever the device's sort does.
        order = experts_nk.reshape(-1).argsort(stable=True)
        load = torch.bincount(experts_nk.reshape(-1), minlength=self.n_experts)
        # int32 ends: grouped_mm refuses others ("Offsets have to be int32", torch 2.13).
        y = self.experts(x_nD[order // k], load.cumsum(0).to(torch.int32))
        # The inverse permutation, by one scatter in place of a second sort.
        back = torch.empty_like(order)
        back[order] = torch.arange(n * k, device=order.device)
        # Gather, weigh, sum over k: index_add into tokens would add in any order on a GPU.
        y_nkD = y[back].view(n, k, -1) * weights_nk[..., None].to(y.dtype)
        if valid_n is not None:
            kept = experts_nk[valid_n].reshape(-1)
            load = torch.bincount(kept, minlength=self.n_experts)
        return y_nkD.sum(1), load

    def _chosen(self, x_nD: Tensor, routing: Choice, valid_n: Tensor | None) -> tuple[Tensor, Tensor]:
        weights_Ec, tokens_Ec, _ = routing
        chosen = tokens_Ec.shape[1]
        load = torch.full((self.n_experts,), chosen, device=x_nD.device)
        rows = tokens_Ec.reshape(-1)
        y = self.experts(x_nD[rows], load.cumsum(0).to(torch.int32))
        y = y * weights_Ec.reshape(-1, 1).to(y.dtype)
        # On a GPU index_add adds with atomics, in any order, unless torch.use_deterministic_algorithms is on.
        return y.new_zeros(len(x_nD), y.shape[-1]).index_add(0, rows, y), load
