"""What is seen and what attention gives, written out: a pair of a query and a key at a time, from what parts say of pairs.

Nothing here is what a model runs, so that one bug can't be in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Pairs = list[list[bool]]  # [query][key]


def row_data(batch: Mapping[str, Tensor], needs: Sequence[str], row: int) -> dict[str, Any]:
    """What a mask reads of one row of a batch, as plain numbers and lists."""
    return {name: batch[name][row].tolist() for name in needs}


def sees(rule: Any, q: int, k: int, length: int, row: Mapping[str, Any]) -> bool:
    """Whether a mask or a window lets the query q see the key k. One that has no `sees` is asked its `allowed`, for q alone."""
    if hasattr(rule, "sees"):
        return bool(rule.sees(q, k, row))
    data = {name: torch.tensor(value)[None] for name, value in row.items()}
    return bool(rule.allowed(torch.tensor([[q]]), torch.arange(length)[None], data).reshape(-1)[k])


def visible_pairs(mask: Any, window: Any, batch: Mapping[str, Tensor], row: int) -> Pairs:
    """mask & window & documents & padding & the caller's own mask, in one row of a batch. A token that sees nothing but
    padding sees itself."""
    length = batch["ids"].shape[1]
    own = row_data(batch, mask.needs, row)
    valid = batch["valid"][row].tolist() if "valid" in batch else [True] * length
    documents = batch["documents"][row].tolist() if "documents" in batch else [0] * length
    allowed = batch["allowed"][row].tolist() if "allowed" in batch else [[True] * length] * length
    out = []
    for q in range(length):
        near = [
            k
            for k in range(length)
            if sees(mask, q, k, length, own) and sees(window, q, k, length, own) and documents[q] == documents[k]
        ]
        shown = [k for k in near if valid[k]] or [k for k in near if k == q]
        out.append([k in shown and allowed[q][k] for k in range(length)])
    return out


def reachable(layers: Sequence[Pairs]) -> Pairs:
    """Which inputs can make a difference to which outputs of layers that see so, one after the other."""
    length = len(layers[0])
    after = [[q == k for k in range(length)] for q in range(length)]
    for pairs in layers:
        after = [
            [any((pairs[q][j] or q == j) and after[j][k] for j in range(length)) for k in range(length)]
            for q in range(length)
        ]
    return after


def attention(
    q_NTH: Tensor,
    k_KSH: Tensor,
    v_KSH: Tensor,
    pairs: Pairs,
    *,
    scale: float,
    bias_NTS: Tensor | None = None,
    softcap: float | None = None,
    sink_N: Tensor | None = None,
) -> Tensor:
    """(N, T, H'): softmax(softcap(scale q.k + bias)) v over the keys that are seen, a query of a head at a time, in float64.

    Query heads share key heads in order: the first N / K of them the first. A query that sees nothing gives 0.
    """
    n_heads, groups = len(q_NTH), len(q_NTH) // len(k_KSH)
    q_NTH, k_KSH, v_KSH = q_NTH.double(), k_KSH.double(), v_KSH.double()
    heads = []
    for n in range(n_heads):
        rows = []
        for t, row in enumerate(pairs):
            keys = [s for s, yes in enumerate(row) if yes]
            scores = (k_KSH[n // groups][keys] * q_NTH[n, t]).sum(-1) * scale
            if bias_NTS is not None:
                scores = scores + bias_NTS[n, t][keys].double()
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            values = v_KSH[n // groups][keys]
            if not keys:
                rows.append(values.sum(0))
                continue
            most = scores.detach().max()  # exp would overflow
            powers = torch.exp(scores - most)
            total = powers.sum() + (0.0 if sink_N is None else torch.exp(sink_N[n].double() - most))
            rows.append((powers[:, None] * values).sum(0) / total)
        heads.append(torch.stack(rows))
    return torch.stack(heads)
