"""The direction in which a token looks. q (T, 1) and k (1, S) are absolute places in the text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmlab.registry import register


@register("mask", "causal")
@dataclass(frozen=True)
class Causal:
    """A token sees itself and what came before (Vaswani et al. 2017, arXiv:1706.03762). Returns (T, S) bool."""

    pattern = "causal"
    needs = ()
    relative = True

    def allowed(self, q: Tensor, k: Tensor, data: Mapping[str, Tensor]) -> Tensor:
        return k <= q

    def sees(self, q: int, k: int, row: Mapping[str, Any]) -> bool:
        return not k > q


@register("mask", "bidirectional")
@dataclass(frozen=True)
class Bidirectional:
    """Every token sees every token (BERT: Devlin et al. 2018, arXiv:1810.04805). Returns (T, S) bool."""

    pattern = "full"
    needs = ()
    relative = True

    def allowed(self, q: Tensor, k: Tensor, data: Mapping[str, Tensor]) -> Tensor:
        return torch.ones(len(q), k.shape[-1], dtype=torch.bool, device=k.device)

    def sees(self, q: int, k: int, row: Mapping[str, Any]) -> bool:
        return True


@register("mask", "prefix")
@dataclass(frozen=True)
class Prefix:
    """All see the first `prefix_len` (B,) tokens, the rest is causal (Raffel et al. 2019, arXiv:1910.10683).

    GLM's mask too (Du et al. 2021, arXiv:2103.10360), over [text; spans]. Returns (B, T, S) bool.
    """

    pattern = None
    needs = ("prefix_len",)
    relative = True

    def allowed(self, q: Tensor, k: Tensor, data: Mapping[str, Tensor]) -> Tensor:
        return (k <= q) | (k < data["prefix_len"][:, None, None])

    def sees(self, q: int, k: int, row: Mapping[str, Any]) -> bool:
        return k in range(row["prefix_len"]) or k in range(q + 1)


@register("mask", "permutation")
@dataclass(frozen=True)
class Permutation:
    """A token sees what comes no later in an order of its own (XLNet: Yang et al. 2019, arXiv:1906.08237).

    `rank` (B, S): places in the order; `queries` (B, S) bool: tokens of the second stream, which stand behind the text with
    the ranks of what they ask for. Nobody sees a query; it sees what comes before its rank, or itself if nothing does. Text
    of the same rank sees each other, as what is not predicted does. A batch without `rank` is text without an order, which
    all sees each other. Returns (B, T, S) bool.
    """

    pattern = None
    needs = ("rank", "queries")
    relative = True

    def allowed(self, q: Tensor, k: Tensor, data: Mapping[str, Tensor]) -> Tensor:
        if "rank" not in data:
            return torch.ones(len(q), k.shape[-1], dtype=torch.bool, device=k.device)
        rank_BS, queries_BS = data["rank"], data["queries"]
        asks = queries_BS[:, q[:, 0], None]
        later = rank_BS[:, None, k[0]] - rank_BS[:, q[:, 0], None]
        # XLNet, section 2.3: the content stream sees z_<=t, the query
        # stream z_<t, since at t stands the token that it predicts.
        seen = torch.where(asks, later < 0, later <= 0) & ~queries_BS[:, None, k[0]]
        return seen | ((q == k) & asks & ~seen.any(-1, keepdim=True))

    def sees(self, q: int, k: int, row: Mapping[str, Any]) -> bool:
        rank, queries = row["rank"], row["queries"]
        if queries[q] and not any(rank[j] < rank[q] and not queries[j] for j in range(len(rank))):
            return k == q
        return not queries[k] and (rank[k] < rank[q] or (rank[k] == rank[q] and not queries[q]))


@register("mask", "compensated")
@dataclass(frozen=True)
class Compensated:
    """An order with position compensation: a token knows of every position of the text (MPNet: Song et al. 2020,
    arXiv:2004.09297).

    As `permutation`, and `placeholders` (B, S) bool stand for tokens at places of the order, from 1 on, with their ranks: text
    sees those of what comes later, a query those from its own on, and a placeholder all of them beside the text that is not
    predicted. Returns (B, T, S) bool.
    """

    pattern = None
    needs = ("rank", "queries", "placeholders")
    relative = True

    def allowed(self, q: Tensor, k: Tensor, data: Mapping[str, Tensor]) -> Tensor:
        if "rank" not in data:
            return torch.ones(len(q), k.shape[-1], dtype=torch.bool, device=k.device)
        rank_BS, queries_BS, stands_BS = data["rank"], data["queries"], data["placeholders"]
        asks, stands = queries_BS[:, q[:, 0], None], stands_BS[:, None, k[0]]
        # A placeholder sees what unpredicted text, of rank 0, sees.
        own = rank_BS.masked_fill(stands_BS, 0)[:, q[:, 0], None]
        later = rank_BS[:, None, k[0]] - own
        # Either a token or its placeholder is seen, so that each place of the text is seen once (figure 2 of the paper).
        before, after = torch.where(asks, later < 0, later <= 0), torch.where(asks, later >= 0, later > 0)
        return torch.where(stands, after, before) & ~queries_BS[:, None, k[0]]

    def sees(self, q: int, k: int, row: Mapping[str, Any]) -> bool:
        rank, queries, placeholders = row["rank"], row["queries"], row["placeholders"]
        if queries[k]:
            return False
        if queries[q]:
            return bool(placeholders[k]) == (rank[k] >= rank[q])
        own = 0 if placeholders[q] else rank[q]
        return bool(placeholders[k]) == (rank[k] > own)
