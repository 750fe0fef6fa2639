"""Gradient-disentangled sharing of a token table (DeBERTa-v3: He et al. 2021, arXiv:2111.09543, section 3.2).

The trained model reads the table of a companion plus a delta of its own, and moves the delta alone; the companion reads and
moves the bare table. Outside of such a run both are one table, their sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llmlab.config.spec import ModelSpec
from llmlab.errors import UserError
from llmlab.modules import SplitTable, Table

WEIGHT, BASE, DELTA = (f"embedding.table.{name}" for name in ("weight", "base", "delta"))


def split(embedding: Any, spec: ModelSpec) -> None:
    """Put a split table in the place of an embedding's, without values. UserError where it has none that it would read."""
    table = getattr(embedding, "table", None)
    if isinstance(table, Table):
        # Its sizes from the spec: ZeRO 3 leaves a weight empty.
        embedding.table = SplitTable(spec.sizes.vocab_size, embedding.embed_dim, role=table.role, gain=table.gain)
    if not isinstance(table, Table) or isinstance(embedding.weight, nn.Parameter):
        raise UserError(
            f"embedding={spec.stacks[0].embedding.name} has no `table` of token vectors that its `weight` is, so that no "
            "delta can be added to it; share the whole table, objective.sharing=embedding"
        )


class Bare(nn.Module):
    """An embedding for a companion: `weight` is the bare table of one that is split."""

    def __init__(self, embedding: Any):
        super().__init__()
        # nn.Module would register it as a child.
        object.__setattr__(self, "of", embedding)
        self.embed_dim = embedding.embed_dim

    @property
    def weight(self) -> Tensor:
        # Looked up anew: FSDP2 puts other tensors there for each forward.
        return base(self.of)


def base(embedding: Any) -> Tensor:
    """The table of an embedding that is a parameter: without the delta, if it has one."""
    table = getattr(embedding, "table", None)
    found: Tensor = table.base if isinstance(table, SplitTable) else embedding.weight
    return found


def folded(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole weights with one table in the place of one that is split."""
    return _with(weights, lambda base, delta: base + delta)


def bare(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole weights with the table that a companion reads in the place of one that is split."""
    return _with(weights, lambda base, delta: base)


def _with(weights: Mapping[str, Tensor], one: Any) -> dict[str, Tensor]:
    found = {}
    for name, tensor in weights.items():
        if name.endswith(BASE):
            stem = name.removesuffix(BASE)
            found[stem + WEIGHT] = one(tensor, weights[stem + DELTA])
        elif not name.endswith(DELTA):
            found[name] = tensor
    return found


def fitted(weights: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    """Whole weights as a model of this spec has them: folded, or the table with a delta of 0."""
    if not spec.table_delta:
        return folded(weights)
    if any(name.endswith(BASE) for name in weights):
        return dict(weights)
    path, found = f"stacks.{spec.stacks[0].name}.", dict(weights)
    if (table := found.pop(path + WEIGHT, None)) is not None:
        found |= {path + BASE: table, path + DELTA: torch.zeros_like(table)}
    return found
