"""A model in name only, whose scores are given, and what a loss makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llmlab import attributes, registry
from llmlab.check.restoring.batches import SIZE, Batch
from llmlab.check.twins.observers import texts
from llmlab.check.twins.observers.observed import arrays, options_of, uniform
from llmlab.check.twins.settings import Setting
from llmlab.model.stack import numbered
from llmlab.slots import Aux, Memory, Objective, Output

ROUNDED_UP = 4  # rows that only round the table up
WIDTH, BALANCE, N_LAYERS = 5, 0.25, 4
MADE = ("documents", "allowed")  # keys of a batch that an objective may make of others before a model reads it


class ScoredModel:
    """A model whose heads give these scores, and whose hidden state of a token is the row of a table, plus half of what
    `hidden` states it is given. Its heads alone give hidden states times `head_weight`; one that it has no scores of
    gives those of the layers times `projection`."""

    training = True

    def __init__(self, scores: Mapping[str, Tensor], hidden: Tensor, ids: Tensor | None):
        self.scores, self.hidden, self.ids = scores, hidden, ids
        self.read: list[Tensor] = []
        self.made: dict[str, Tensor] = {}

    def _alike(self, ids: Tensor) -> Tensor:
        """(n, B) bool: True where a text (n, T) is the beginning of one of the batch."""
        assert self.ids is not None
        width = ids.shape[1]
        if width > self.ids.shape[1]:
            return torch.zeros(len(ids), len(self.ids), dtype=torch.bool)
        return (self.ids[None, :, :width] == ids[:, None]).all(-1)

    def __call__(
        self,
        batch: Mapping[str, Tensor],
        heads: Mapping[str, Tensor | None] | None = None,
        memory: Memory | None = None,
        layers: Sequence[int] = (),
    ) -> Output:
        if "ids" not in batch:  # for its heads alone
            return Output(batch["hidden"], {role: batch["hidden"] @ head_weight() for role in heads or ()}, None)
        self.made |= {f"{key}/{len(self.read)}": batch[key] for key in MADE if key in batch}
        self.read.append(batch["ids"])
        rows = heads if heads is not None else dict.fromkeys(self.scores)
        scores, own, before = self.scores, batch["ids"], 0
        if "prefix_len" in batch and self.ids is not None and not self._alike(own).any():
            # What an encoder would read stands before the ids of the batch.
            before = int(batch["prefix_len"][0])
            own = own[:, before:]
        if self.ids is not None and (before or self.ids.shape[0] > own.shape[0]):
            # Some of the texts, as an objective of a mixture reads them: those of the same ids.
            at_rows, width = self._alike(own).int().argmax(1), own.shape[1]
            scores = {role: nn.functional.pad(v[at_rows, :width], (0, 0, before, 0)) for role, v in scores.items()}
        behind = [i - N_LAYERS for i in numbered(layers, N_LAYERS)]
        states = tuple(self.hidden[(batch["ids"] + i) % len(self.hidden)] for i in behind)
        found = {}
        for role, at in rows.items():
            answer = scores[role] if role in scores else torch.stack(states) @ projection()
            found[role] = answer if at is None else answer[at]
        hidden = self.hidden[batch["ids"]]
        if "hidden" in batch:
            hidden = hidden + batch["hidden"] / 2
        return Output(hidden, found, Aux(torch.tensor(BALANCE), torch.tensor([[3, 1]])), layers=states)


def scores_of(setting: Setting, name: str, batch: Batch) -> dict[str, Tensor]:
    """Scores of the heads that it asks for, and of its companions' under COMPANION.ROLE."""
    entry = registry.declared(setting.slot, setting.name, options_of(setting))
    heads = dict(entry.attribute("heads"))
    for role, model in entry.attribute("models").items():
        heads |= {f"{role}.{head}": part for head, part in model.get("heads", {}).items()}
    if "row_ids" in batch:  # as many texts as there are rows that are not only padding
        shape = (int(batch["row_valid"].any(-1).sum()), batch["row_ids"].shape[-1])
    elif "ids" in batch:
        shape = (batch["ids"].shape[0], batch["ids"].shape[1])
    else:
        return {}
    made = {}
    for role, head in heads.items():
        if registry.index()["head", head].attribute("layers"):
            continue
        entry = registry.index()["head", head]
        one = "n_classes" in entry.options and not entry.options["n_classes"].default  # a score a token
        one_each = shape if one else (*shape, 2 if head == "span" else 3)
        both = (*shape, 2, SIZE + ROUNDED_UP)
        sizes = {"text": (shape[0], 4), "context": shape, "token": one_each, "neighbours": both}
        made[role] = 2 * uniform(f"{name} {role}", *sizes.get(entry.attribute("scores"), (*shape, SIZE + ROUNDED_UP)))
    return made


def hidden_states(role: str = "") -> Tensor:
    return uniform(f"hidden {role}".strip(), texts.SIZE, WIDTH)


def head_weight() -> Tensor:
    return 2 * uniform("head", WIDTH, SIZE + ROUNDED_UP)


def projection() -> Tensor:
    return 2 * uniform("project", WIDTH, WIDTH)


def companions_of(
    objective: Objective, scores: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """(the model's own scores by head, those of its companions by role)."""
    own = {role: leaf for role, leaf in scores.items() if "." not in role}
    others: dict[str, dict[str, Tensor]] = {role: {} for role in attributes.get(objective, "objective", "models")}
    for role, leaf in scores.items():
        if "." in role:
            others.setdefault(role.partition(".")[0], {})[role.partition(".")[2]] = leaf
    return own, others


def losses(objective: Objective, batch: Batch, scores: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    leaves = {role: value.clone().requires_grad_() for role, value in scores.items()}
    own, others = companions_of(objective, leaves)
    hidden = hidden_states().requires_grad_()
    # Each has hidden states of its own: what is compared of two models must differ, and a slope there shows.
    theirs = {role: hidden_states(role).requires_grad_() for role in others}
    # Of a list of texts those that are there, in the order of their scores.
    ids = batch["row_ids"][batch["row_valid"].any(-1)] if "row_ids" in batch else batch.get("ids")
    companions = {role: ScoredModel(heads, theirs[role], ids) for role, heads in others.items()}
    model = ScoredModel(own, hidden, ids)
    loss = objective.loss(model, batch, **companions)
    mean = loss.mean()
    if mean.requires_grad:
        mean.backward()
    slopes = {f"slope/{role}": torch.zeros_like(v) if v.grad is None else v.grad for role, v in leaves.items()}
    for name, table in {"hidden": hidden, **{f"{role}.hidden": t for role, t in theirs.items()}}.items():
        if table.grad is not None:
            slopes[f"slope/{name}"] = table.grad
    terms = {f"loss/{name}": torch.stack([s.double(), n.double()]) for name, (s, n) in loss.terms.items()}
    logs = {f"log/{name}": torch.stack([s.double(), n.double()]) for name, (s, n) in loss.logs.items()}
    weights = {f"weight/{name}": torch.tensor(float(w)) for name, w in loss.weights.items()}
    both = {"model": model, **companions}
    read = {f"read/{role}": torch.stack(each.read) for role, each in both.items() if companions and each.read}
    for role, each in both.items():
        read |= {f"{key}/{role}/{n}": value for name, value in each.made.items() for key, n in [name.split("/")]}
    return arrays({"mean": mean, **slopes, **terms, **logs, **weights, **read})


def flat(before: str, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays by name, those of a list by their numbers."""
    found: dict[str, np.ndarray] = {}
    for key, value in values.items():
        name = f"{before}/{key}".rstrip("/")
        many = isinstance(value, list) and isinstance(value[0], np.ndarray)
        found |= {f"{name}/{i}": v for i, v in enumerate(value)} if many else {name: np.asarray(value)}
    return found
