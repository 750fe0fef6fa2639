"""Reference implementation of visibility and attention: plain loops over one query and one key at a time.

It shares no code with what a model runs, so that one bug can't be in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from llmlab.slots import Mask, Window

Pairs = list[list[bool]]  # [query][key]
RowData = Mapping[str, Any]  # numbers and lists


def row_data(batch: Mapping[str, Tensor], needs: Sequence[str], row: int) -> RowData:
    """The data that a mask needs of one row of a batch, as plain numbers and lists."""
    return {name: batch[name][row].tolist() for name in needs}


def sees(rule: Mask | Window, q: int, k: int, length: int, row: RowData) -> bool:
    """True if a mask or window lets the query q see the key k: by its `sees`, or by `allowed` of this query alone."""
    one_pair = getattr(rule, "sees", None)  # optional, so not in the Protocols
    if one_pair is not None:
        return bool(one_pair(q, k, row))
    data = {name: torch.tensor(value)[None] for name, value in row.items()}
    return bool(rule.allowed(torch.tensor([[q]]), torch.arange(length)[None], data).reshape(-1)[k])


def visible_pairs(mask: Mask, window: Window, batch: Mapping[str, Tensor], row: int) -> Pairs:
    """mask & window & documents & padding & the caller's own mask, in one row of a batch.

    A token that would see only padding sees itself: a softmax over no keys is NaN.
    """
    length = batch["ids"].shape[1]
    data = row_data(batch, mask.needs, row)
    valid = batch["valid"][row].tolist() if "valid" in batch else [True] * length
    documents = batch["documents"][row].tolist() if "documents" in batch else [0] * length
    allowed = batch["allowed"][row].tolist() if "allowed" in batch else [[True] * length] * length
    out = []
    for q in range(length):
        near = [
            k
            for k in range(length)
            if sees(mask, q, k, length, data) and sees(window, q, k, length, data) and documents[q] == documents[k]
        ]
        shown = [k for k in near if valid[k]] or [k for k in near if k == q]
        out.append([k in shown and allowed[q][k] for k in range(length)])
    return out


def reachable(layers: Sequence[Pairs]) -> Pairs:
    """[q][k]: input k can affect output q of these layers in sequence, each with its visible pairs, and residuals."""
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
    """(N, T, H'): softmax(softcap(scale q.k + bias)) v over the visible keys, one query of one head at a time, in float64.

    Grouped queries: the first N / K query heads read key head 0, and so on. A query that sees nothing gives 0. A sink adds
    exp(sink) to the denominator.
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
            largest = scores.detach().max()  # subtracted from all scores: exp overflows float64 at 710
            powers = torch.exp(scores - largest)
            total = powers.sum() + (0.0 if sink_N is None else torch.exp(sink_N[n].double() - largest))
            rows.append((powers[:, None] * values).sum(0) / total)
        heads.append(torch.stack(rows))
    return torch.stack(heads)
