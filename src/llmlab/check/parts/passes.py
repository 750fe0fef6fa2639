"""The check of an objective's declared cost: its `passes` are the forwards that its loss makes."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llmlab import attributes
from llmlab.check import learning
from llmlab.check.parts.fixtures import tested_part
from llmlab.check.subject import CheckFailed, Subject
from llmlab.slots import Output
from llmlab.training import cost

Texts = Counter[tuple[str, int, int | None, bool]]  # (model, tokens, those of the source, trained) -> texts read so


def passes(subject: Subject) -> None:
    """The forwards that an objective's loss makes, and the rows that its heads see, are those that its `passes` count."""
    tested_part(subject, "objective", "alignment")
    objective, batch = learning.build_objective(subject), learning.prepared_batch(subject)
    model = subject.fresh().train()
    others = learning.companion_models(subject, model)
    models = {cost.TRAINED: model, **others}
    read, seen = Texts(), Counter[tuple[str, str]]()

    def note(name: str, module: nn.Module, given: tuple[Any, ...], how: Mapping[str, Any], output: Output) -> None:
        texts, heads = given[0] if given else how["batch"], how.get("heads")
        alone = "ids" not in texts  # heads that read hidden states of another model
        rows, tokens = texts["hidden"].shape[:2] if alone else texts["ids"].shape
        source = texts["source_ids"].shape[1] if "source_ids" in texts else None
        trained = torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters())
        if not alone:
            read[(name, tokens, source, trained)] += rows
        for role in models[name].heads if heads is None else heads:
            where: Tensor | None = None if heads is None else heads[role]
            if attributes.get(models[name].heads[role], "head", "layers"):
                seen[name, role] += output.heads[role].shape[0] * rows * tokens
            elif attributes.get(models[name].heads[role], "head", "per_target"):
                seen[name, role] += output.heads[role].shape[:2].numel()
            else:
                seen[name, role] += rows * tokens if where is None else int(where.sum())

    # Without with_kwargs a hook sees positional arguments only, and heads= is none.
    handles = [
        each.register_forward_hook(functools.partial(note, name), with_kwargs=True) for name, each in models.items()
    ]
    try:
        objective.loss(model, batch, **others)
    finally:
        for handle in handles:
            handle.remove()
    acts = hasattr(objective, "rollout")  # other forwards may be of the rollout, of which the loss makes none
    told, rows_told = Texts(), Counter[tuple[str, str]]()
    for i in range(len(next(iter(batch.values())))):
        sample: dict[str, Any] = {name: tensor[i].numpy() for name, tensor in batch.items()}
        if "row_valid" in sample:  # sequences that are there, and not those that fill up to the most of a sample
            there = sample["row_valid"].any(-1)
            sample |= {name: list(sample[name][there]) for name in sample if name.startswith("row_")}
        for p in cost.passes(objective, sample):
            if acts and not p.trained:
                continue
            told[(p.model, p.tokens, p.source, p.trained)] += 1
            rows_told.update({(p.model, role): p.tokens if n is None else n for role, n in p.heads.items()})
    if acts:
        read = Counter({text: n for text, n in read.items() if text[3]})
        learn = {text[0] for text in read}
        seen = Counter({key: n for key, n in seen.items() if key[0] in learn})
    if read != told:
        raise CheckFailed(
            f"texts that its loss reads, as (model, tokens, source, trained): {dict(read)}, but passes tell {dict(told)}"
        )
    if seen != rows_told:
        raise CheckFailed(f"rows that heads see in its loss: {dict(seen)}, but passes tell {dict(rows_told)}")
