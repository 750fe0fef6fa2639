"""The cost of an objective is that of the forwards that its loss makes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llmlab.check import learning
from llmlab.check.parts.fixtures import tested_part
from llmlab.check.subject import CheckFailed, Subject
from llmlab.training import cost

Texts = Counter[tuple[int, int | None, bool]]  # (tokens, those of the source, trained) -> texts that are read so


def passes(subject: Subject) -> None:
    """The forwards that an objective's loss makes, and the rows that its heads see, are those that its `passes` count."""
    tested_part(subject, "objective")
    objective, batch = learning.build_objective(subject), learning.prepared_batch(subject)
    model = subject.fresh().train()
    read, seen = Texts(), Counter[str]()

    def note(module: nn.Module, given: tuple[Any, ...], how: Mapping[str, Any], _: Any) -> None:
        texts, heads = given[0] if given else how["batch"], how.get("heads")
        rows, tokens = texts["ids"].shape
        source = texts["source_ids"].shape[1] if "source_ids" in texts else None
        read[(tokens, source, torch.is_grad_enabled())] += rows
        for role in model.heads if heads is None else heads:
            where: Tensor | None = None if heads is None else heads[role]
            seen[role] += rows * tokens if where is None else int(where.sum())

    handle = model.register_forward_hook(note, with_kwargs=True)
    try:
        objective.loss(model, batch)
    finally:
        handle.remove()
    told, rows_told = Texts(), Counter[str]()
    for i in range(len(batch["ids"])):
        sample = {name: tensor[i].numpy() for name, tensor in batch.items()}
        for each in cost.passes(objective, sample):
            if each.model == cost.TRAINED:
                told[(each.tokens, each.source, each.trained)] += 1
                rows_told.update({role: each.tokens if n is None else n for role, n in each.heads.items()})
    if read != told:
        raise CheckFailed(
            f"texts that its loss reads, as (tokens, source, trained): {dict(read)}, but passes tell {dict(told)}"
        )
    if seen != rows_told:
        raise CheckFailed(f"rows that heads see in its loss: {dict(seen)}, but passes tell {dict(rows_told)}")
