"""The slots of a recipe: what an objective, a reward, an optimizer and a schedule are given, called with, and return.

Plugins import them from `llmlab.slots`, which says how parts are built and what they declare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from llmlab.modules import Role
from llmlab.values import Loss, Output


class LanguageModel(Protocol):
    """A model as an objective calls it. heads: role -> the rows (B, T) bool that the head sees, None for all of them."""

    def __call__(self, batch: Mapping[str, Tensor], heads: Mapping[str, Tensor | None] | None = None) -> Output: ...


class Objective(Protocol):
    """objective(vocabulary, seq_len, /): what is learnt from samples.

    Class attributes, literals: `reads` (the kind of samples: "text", or of records "labelled", "pairs", "chat", "preferences",
    "prompts"), `mask` (name of a mask part), `heads` {role: name of a head part}, `special` (names of the tokens it needs),
    `topologies` (of "decoder", "encoder", "encoder_decoder"), `models` (companions, below), `fixed_counts` (every sample has as
    many targets), `gives` (what its samples hold for a mask that `needs` it) and
    `measures` {name of a term or a log: kind}: "nll" is a negative log-likelihood, of which a perplexity is claimed; "bits" is
    one of all tokens of the text but the first, of which bits per byte are too; "accuracy", "reward" and "margin" are better
    when higher; one that is not named is just a number. Nothing else is ever called a perplexity.

    `models` declares the other models that it works with, by role: {role: {"heads": {role: name of a head part}, "trains":
    bool, "shares": ("embedding",)}}. One that does not train is frozen: without gradients, in evaluation. What it shares is one
    tensor with the trained model's. Which model that is, `models.ROLE=` says on the command line.

    `collate` says how samples become a batch: "stack" those of one shape; "pad" records, or "pack" them into windows.

    `prepare(sample, rng)` on a CPU worker: sample {"tokens": (seq_len + 1,) int64, "documents": (seq_len + 1,) int64}, or of a
    record what `llmlab.data.records.RecordSamples` says of its kind -> a dict of numpy arrays. "given" (seq_len + 1,) bool,
    where it is there, is True of tokens that are no text of their own, which are no targets. `targets(prepared)` -> number of
    targets in it, by term. `passes(prepared)`, if it has one, -> the forwards that the loss makes of one sample; else it is
    one of the trained model over `ids` (and `source_ids`) with its heads at the targets. `loss(model, batch, **companions)` ->
    Loss; companions are the models of `models`, by role. `shown` (else 0): the share of targets whose answer the model is
    shown.

    A batch has what `prepare` gave, of records padded by the token with `valid` (and `source_valid`) beside, and of packed ones
    `documents` and `positions`; and from the framework `counts` {term: int64 scalar}, targets of the whole optimizer step.
    Batch keys that the model reads: see `llmlab.model.model.Model.forward`. A key that neither the loss nor a model reads is
    an error when the first batch is seen, but for those that the objective `gives`.
    """

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]: ...
    def targets(self, prepared: dict[str, Any]) -> dict[str, int]: ...
    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor], **companions: LanguageModel) -> Loss: ...


class Reward(Protocol):
    """reward(/): what an answer is worth, to an objective that reads prompts.

    `score(records, answers)` -> a finite number an answer. A record has the keys of the user's file, "prompt" among them; an
    answer is the text that the model gave, special tokens left out. `needs`, if it is there: other keys than
    "prompt" that every record must have.
    """

    needs: Sequence[str]

    def score(self, records: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> Sequence[float]: ...


class OptimizerPart(Protocol):
    """optimizer(/): `build(params)` makes a torch optimizer; params is a list of (path, parameter, role).

    Weight decay and other splits go by role, never by name. `lr` is an option of every optimizer part.
    """

    lr: float

    def build(self, params: Sequence[tuple[str, nn.Parameter, Role]]) -> torch.optim.Optimizer: ...


class Schedule(Protocol):
    """schedule(/): `factor(step, total)` on the learning rate; step counts from 0, total is the budget in steps."""

    def factor(self, step: int, total: int) -> float: ...
