"""Values that travel between parts and the framework. `llmlab.slots` offers them to parts; shapes as there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


class Aux(NamedTuple):
    """Output of a routed layer, and of a whole model, beside its hidden states. None where it has nothing to say."""

    loss: Tensor | None = None  # balance and z-loss, coefficients applied, a mean over a micro-batch's valid tokens
    tokens_per_expert: Tensor | None = None  # (E,) int64: valid tokens sent to each; of a stack or a model (n, E)


class Loss(NamedTuple):
    """A loss over a micro-batch: a weighted sum of means, of which each is a sum over its targets and their number.

    terms: by name a scalar sum and a scalar count. Each is divided by the count of the whole optimizer step, over all
    micro-batches and ranks, so that a batch may be cut in any way. weights: of a term; 1.0 of one that is not named.
    logs: what else is shown, sums and counts as well; terms are shown under their names without being logged. aux: the
    auxiliary output of each model that was run, by role ("model" is the one that is trained); `auxiliary` makes it. Its
    balance loss is in no term: the module adds it as a mean over micro-batches.
    """

    terms: Mapping[str, tuple[Tensor, Tensor]]
    weights: Mapping[str, float] = {}
    logs: Mapping[str, tuple[Tensor, Tensor]] = {}
    aux: Mapping[str, Aux] = {}

    @property
    def counts(self) -> dict[str, Tensor]:
        """The targets of each term in this micro-batch."""
        return {name: count for name, (_, count) in self.terms.items()}

    @property
    def shown(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Terms and logs, as (sum, count)."""
        return {**self.terms, **self.logs}

    @property
    def balance(self) -> Tensor | None:
        """The sum of the models' balance losses."""
        losses = [aux.loss for aux in self.aux.values() if aux.loss is not None]
        return None if not losses else losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def sums(self, counts: Mapping[str, Tensor], shares: int = 1) -> dict[str, Tensor]:
        """Weighted sums of the terms, of which the first has in it a share of the balance loss.

        counts: of the whole step; shares: its micro-batches over all ranks. The sum over the step of a term's sums, divided by
        its count, is the term's weighted mean, and in the first the balance loss's mean over micro-batches is added.
        """
        balance, found = self.balance, {}
        for name, (value, _) in self.terms.items():
            if (weight := self.weights.get(name, 1.0)) != 1.0:
                value = weight * value
            if balance is not None:
                value, balance = value + balance * (counts[name].clamp(min=1) / shares), None
            found[name] = value
        return found

    def mean(self, counts: Mapping[str, Tensor] | None = None, shares: int = 1) -> Tensor:
        """The loss whose gradient, averaged over `shares` micro-batches, is that of the step; alone, of this micro-batch."""
        counts = self.counts if counts is None else counts
        means = [value * (shares / counts[name].clamp(min=1)) for name, value in self.sums(counts, shares).items()]
        return means[0] if len(means) == 1 else torch.stack(means).sum()


class Output(NamedTuple):
    """The result of a forward: `hidden` (B, T, D) of its last stack, `heads[role]`, auxiliary losses, and the source."""

    hidden: Tensor
    heads: dict[str, Tensor]
    aux: Aux | None
    source: Tensor | None = None  # an encoder-decoder's encoder output (B, S, D)


def auxiliary(*outputs: Output) -> Aux:
    """The auxiliary output of one model over its forwards of a micro-batch: the mean of the balance losses, so that its
    coefficient means what it does with one forward; tokens of experts are added up."""
    found = [output.aux for output in outputs if output.aux is not None]
    losses = [aux.loss for aux in found if aux.loss is not None]
    tokens = [aux.tokens_per_expert for aux in found if aux.tokens_per_expert is not None]
    return Aux(
        None if not losses else losses[0] if len(losses) == 1 else torch.stack(losses).mean(),
        None if not tokens else tokens[0] if len(tokens) == 1 else torch.stack(tokens).sum(0),
    )


@dataclass(frozen=True)
class Pass:
    """One forward of a model over one prepared sample, which `llmlab plan`, a budget in FLOPs and the MFU count.

    tokens: that the model reads (an encoder-decoder's decoder); source: that its encoder does. model: a role, "model" for
    the one that is trained. trained: a backward follows, which costs twice the forward. heads: roles of the heads that are
    computed, and at how many of the tokens; None: at all. times: how often it is made each time that the sample is trained on,
    a share of 1 where it serves several (an answer that is generated once and learnt from in several epochs).
    """

    tokens: int
    source: int | None = None
    model: str = "model"
    trained: bool = True
    heads: Mapping[str, int | None] = field(default_factory=dict)
    times: float = 1.0


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer as an objective knows it: number of ids in use, and the ids of special tokens by name.

    Names: eos, pad, mask, cls, sep, and sentinel_0, sentinel_1 ... An objective lists in `special` those it needs.
    """

    size: int
    special: Mapping[str, int]


@dataclass(frozen=True)
class Context:
    """One forward of one stack, frozen. `offset` counts the keys that a cache or a memory holds already; S = offset + T."""

    length: int  # T
    offset: int = 0
    ids: Tensor | None = None  # (B, T) token ids
    positions: Tensor | None = None  # (B, T) position ids given by the caller, or (B, C, T): see Position.counts
    valid: Tensor | None = None  # (B, S) bool: False where a key is padding
    documents: Tensor | None = None  # (B, S) int: keys of another document are not seen
    segments: Tensor | None = None  # (B, T) int: token types
    allowed: Tensor | None = None  # (B, T, S) bool: the caller's own mask
    data: Mapping[str, Tensor] = field(default_factory=dict)  # what parts read by name (a mask's `needs`, `queries`)

    @property
    def keys(self) -> int:
        return self.offset + self.length


@dataclass(frozen=True)
class Score:
    """The way raw products become weights: s = softcap(scale q.k + bias), masked; then the sink; softmax; dropout."""

    scale: float
    softcap: float | None = None
    dropout: float = 0.0


class Term(NamedTuple):
    """Queries and keys to be multiplied, and where that product counts (None: everywhere)."""

    q_BNTH: Tensor
    k_BKSH: Tensor
    region: Tensor | None = None  # (T, S) or (B, T, S) bool


class Cost(NamedTuple):
    """The cost of a part by its own account, of one text; None where it does not say. See `llmlab.slots`, "What parts cost"."""

    flops: float | None = None  # of a forward of all the text's tokens; a product of (m, k) and (k, n) is 2 m k n
    kv: int | None = None  # of attention: numbers that a token leaves in the cache


class Routing(NamedTuple):
    """Experts of each token: weights (n, k), experts (n, k) int64, and a mean auxiliary loss over the valid tokens or None."""

    weights: Tensor
    experts: Tensor
    loss: Tensor | None = None


class Choice(NamedTuple):
    """Choice of tokens by experts: weights (E, c), tokens (E, c) int64, each expert's rows of the n; the loss as of Routing."""

    weights: Tensor
    tokens: Tensor
    loss: Tensor | None = None


@dataclass(frozen=True)
class Rollout:
    """Settings of an objective that acts on prompts: it generates answers and learns from them for `batches` x `epochs` steps.

    samples: answers to each prompt, which the model writes at `temperature`, of at most `max_new` tokens. batches: optimizer
    steps in which each answer is used once; epochs: how often.
    """

    samples: int
    max_new: int
    temperature: float = 1.0
    batches: int = 1
    epochs: int = 1

    def __post_init__(self) -> None:
        for name in ("samples", "max_new", "batches", "epochs"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"objective.{name} must be at least 1, but is {value}")
        if not self.temperature > 0:
            raise ValueError(f"objective.temperature must be more than 0, but is {self.temperature}")

    @property
    def steps(self) -> int:
        """Optimizer steps between two rollouts."""
        return self.batches * self.epochs
