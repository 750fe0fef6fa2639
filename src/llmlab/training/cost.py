"""The cost of training: floating-point operations of all the forwards and backwards that an objective makes.

It is what `llmlab plan`, a budget in FLOPs, the MFU and a run's record count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from llmlab import attributes, policy, registry
from llmlab.config.composed import Declared
from llmlab.data import collate
from llmlab.data.samples import Samples
from llmlab.decoding.generate import limit
from llmlab.errors import UserError
from llmlab.model import flops
from llmlab.model.model import Model
from llmlab.model.probe import CostSource
from llmlab.model.stack import numbered
from llmlab.slots import Objective, Pass, Rollout
from llmlab.training import losses

SAMPLES = 8  # that are prepared and averaged
TRAINED = losses.MODEL  # the role of the model that is trained


@dataclass(frozen=True)
class PassCost:
    """Passes of a kind: the role of their model, their number in a sample on average, and what one forward is made of."""

    model: str
    trained: bool
    times: float
    account: flops.Account

    def flops(self, *, dense: bool = False) -> float:
        """FLOPs a sample, the backward included."""
        if not self.trained:
            return self.times * self.account.forward(dense=dense)
        # A backward has two products for each of a forward: by the input and by the weight (Kaplan et al. 2020,
        # arXiv:2001.08361).
        return self.times * (self.account.training(dense=dense) * self.account.tokens)


@dataclass(frozen=True)
class Cost:
    """parameters: of the trained model, total and active. seq_len: tokens of a sample, on average."""

    parameters: flops.Parameters
    passes: tuple[PassCost, ...]
    seq_len: int

    @property
    def flops_per_token(self) -> float:
        """FLOPs of training, for each of the seq_len tokens of a sample."""
        return sum(p.flops() for p in self.passes) / self.seq_len

    @property
    def dense(self) -> float:
        """The same with the pairs of tokens that a mask hides."""
        return sum(p.flops(dense=True) for p in self.passes) / self.seq_len

    @property
    def forward(self) -> dict[str, tuple[float, float]]:
        """FLOPs of the forwards for each token, and with the pairs that a mask hides, by what they are for."""
        by_purpose: dict[str, tuple[float, float]] = {}
        for each in self.passes:
            for item in each.account.items:
                what = item.what if each.model == TRAINED else f"{each.model}: {item.what}"
                one, other = by_purpose.get(what, (0.0, 0.0))
                by_purpose[what] = (
                    one + each.times * item.flops / self.seq_len,
                    other + each.times * item.dense / self.seq_len,
                )
        return {what: pair for what, pair in by_purpose.items() if any(pair)}

    @property
    def sources(self) -> tuple[CostSource, ...]:
        """Notes on parts that are more than linears, once each."""
        return tuple(dict.fromkeys(source for each in self.passes for source in each.account.sources))


def one_pass(model: Model, account: flops.Account, seq_len: int) -> Cost:
    """The cost of one trained pass a sample."""
    return Cost(flops.count_parameters(model), (PassCost(TRAINED, True, 1.0, account),), seq_len)


def passes(objective: Objective, prepared: Mapping[str, Any]) -> Sequence[Pass]:
    """The passes of the loss over a sample: those that the objective tells, else one of the trained model and of each
    companion over the same tokens, with their heads at the targets."""
    declared: Callable[[Mapping[str, Any]], Sequence[Pass]] | None = getattr(objective, "passes", None)
    if declared is not None:
        return declared(prepared)
    if "ids" not in prepared:
        name = type(objective).__name__
        raise UserError(f"{name}: its samples have no ids, so passes(prepared) must say what the model reads")
    tokens = len(prepared["ids"])
    rows = min(tokens, max(objective.targets(dict(prepared)).values(), default=tokens))
    source = len(prepared["source_ids"]) if "source_ids" in prepared else None
    heads: Mapping[str, str] = attributes.get(objective, "objective", "heads")
    others: Mapping[str, Mapping[str, Any]] = attributes.get(objective, "objective", "models")

    def seen(parts: Mapping[str, str]) -> dict[str, int | None]:
        # A head of a text reads all its tokens, whatever the number of targets.
        return {r: rows if registry.index()["head", part].attribute("per_token") else None for r, part in parts.items()}

    return [
        Pass(tokens, source, heads=seen(heads)),
        *(
            Pass(tokens, source, role, about.get("trains", True), seen(about.get("heads", {})))
            for role, about in others.items()
        ),
    ]


def estimate(
    models: Mapping[str, Model], objective: Objective, windows: Samples, judges: Mapping[str, Declared] | None = None
) -> Cost:
    """The cost as samples from all over the text have it: lengths, rows of heads, separate documents. models: by role.
    judges: those that the reward works with.

    UserError if documents are to be separate and the objective does not keep them, or a sample is longer than a model reads.
    """
    chosen = windows.spread(min(SAMPLES, len(windows)))
    n = len(chosen)
    chances = [np.random.default_rng(i) for i in range(n)]
    drawn = [collate.drawn(objective, windows, at, rng) for at, rng in zip(chosen, chances, strict=True)]
    prepared = [collate.prepare(objective, sample, rng) for sample, rng in zip(drawn, chances, strict=True)]
    for sample in prepared:
        losses.check_prepared(objective, sample)
    documents: list[list[int]] | None = None
    if windows.documents:
        if "documents" not in prepared[0]:
            raise UserError("data.separate_documents=true: the objective does not keep documents apart; leave it out")
        documents = [np.unique(p["documents"], return_counts=True)[1].tolist() for p in prepared]
    rollout: Rollout | None = getattr(objective, "rollout", None)
    together: bool = attributes.get(objective, "objective", "together")
    alike: dict[tuple[Any, ...], list[tuple[int, Pass]]] = {}
    for i, sample in enumerate(prepared):
        rolled = (
            []
            if rollout is None
            else [policy.generation(sample, rollout, together), *_judged(sample, rollout, together, judges or {})]
        )
        for each in [*passes(objective, sample), *rolled]:
            key = (each.model, each.tokens, each.source, each.trained, each.places, each.memory, *each.heads)
            alike.setdefault(key, []).append((i, each))
    costs = []
    for group in alike.values():
        first = group[0][1]
        model = _model(models, first, objective)
        if first.source is not None:
            check_positions(model, first.source, first.tokens)
        elif first.model != TRAINED and (room := limit(model)) is not None and first.tokens > room:
            raise UserError(
                f"models.{first.model}: it reads {first.tokens} tokens of each sample, more than the {room} positions that it "
                f"has; set data.seq_len={room} or less"
            )
        account = flops.account(
            model,
            first.tokens,
            source_length=first.source,
            heads={role: _share(role, group) for role in first.heads},
            documents=None if documents is None else [documents[i] for i, _ in group],
            orders=_orders(model, first, [prepared[i] for i, _ in group]),
            places=first.places,
            memory=first.memory,
        )
        costs.append(PassCost(first.model, first.trained, sum(p.times for _, p in group) / n, account))
    return Cost(flops.count_parameters(models[TRAINED]), tuple(costs), max(1, round(windows.tokens_per_sample)))


def _judged(
    prepared: Mapping[str, Any], rollout: Rollout, together: bool, judges: Mapping[str, Declared]
) -> list[Pass]:
    """An answer with its prompt as each of the reward's models reads it, as often as it is generated."""
    written = policy.generation(prepared, rollout, together)
    tokens = written.tokens + 1  # the last too, which a policy does not read
    return [
        replace(written, tokens=tokens, model=role, heads=dict.fromkeys(about.heads)) for role, about in judges.items()
    ]


def _model(models: Mapping[str, Model], asked: Pass, objective: Objective) -> Model:
    name = type(objective).__name__
    if asked.model not in models:
        raise UserError(f"{name}.passes names the model {asked.model!r}, but there is {', '.join(models)}")
    if unknown := [role for role in asked.heads if role not in models[asked.model].heads]:
        raise UserError(f"{name}.passes names the head {unknown[0]!r}, which the model {asked.model!r} doesn't have")
    try:
        numbered(asked.layers, len(models[asked.model].all_stacks()[-1].spec.execute))
    except ValueError as e:
        raise UserError(f"{name}, the model {asked.model!r}: {e}") from e
    return models[asked.model]


def _orders(model: Model, asked: Pass, samples: Sequence[Mapping[str, Any]]) -> list[dict[str, torch.Tensor]] | None:
    """What a mask that goes by an order reads of samples, where a pass is over all of their tokens."""
    needs = model.all_stacks()[-1].mask.needs
    if asked.model != TRAINED or "rank" not in needs or asked.tokens != len(samples[0].get("rank", ())):
        return None
    return [
        {name: torch.from_numpy(sample[name])[None] for name in (*needs, "documents") if name in sample}
        for sample in samples
    ]


def _share(role: str, group: Sequence[tuple[int, Pass]]) -> float:
    """The share of the tokens of alike passes that a head sees."""
    each = [p.tokens if p.heads[role] is None else p.heads[role] or 0 for _, p in group]
    return sum(each) / (len(group) * group[0][1].tokens)


def check_positions(model: Model, *lengths: int) -> None:
    """UserError if a stack has fewer positions than it reads tokens of a sample: data.seq_len does not tell."""
    for i, (name, length) in enumerate(zip(model.stacks, lengths, strict=True)):
        room = limit(model, i)
        if room is not None and length > room:
            raise UserError(
                f"the {name} reads {length} tokens of each sample, more than the {room} positions that "
                f"model.max_positions gives; set model.max_positions={max(lengths)}, or choose position=rope"
            )
