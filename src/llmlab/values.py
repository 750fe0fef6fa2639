"""Values that travel between parts and the framework. `llmlab.slots` offers them to parts; shapes as there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor


class Loss(NamedTuple):
    """A loss over a micro-batch: `sum` over its targets, their number, and other sums to log.

    `logs[name] = (sum, count)`; the module adds both up over micro-batches and ranks before dividing. `aux` is not in
    `sum`: the module adds it as a mean over micro-batches.
    """

    sum: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody counts with
    logs: Mapping[str, tuple[Tensor, Tensor]] = {}
    load: Tensor | None = None  # (n, E) int64: expert visits of the n routed layers, for routers' `after_step`
    aux: Tensor | None = None  # the model's auxiliary loss, a mean over the tokens of this micro-batch on all ranks


class Aux(NamedTuple):
    """What a routed layer returns beside its output. None where it has nothing to say."""

    loss: Tensor | None = None  # balance and z-loss, coefficients applied, a mean over a micro-batch's valid tokens
    load: Tensor | None = None  # (E,) int64: valid tokens sent to each expert; a stack returns (n, E)


class Output(NamedTuple):
    """What a model returns: `hidden` (B, T, D) of its last stack, `heads[role]`, auxiliary losses, and the source."""

    hidden: Tensor
    heads: dict[str, Tensor]
    aux: Aux | None
    source: Tensor | None = None  # an encoder-decoder's encoder output (B, S, D)


@dataclass(frozen=True)
class Vocabulary:
    """What an objective knows of the tokenizer: number of ids in use, and the ids of special tokens by name.

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
    """How raw products become weights: s = softcap(scale q.k + bias), masked; then the sink; softmax; dropout."""

    scale: float
    softcap: float | None = None
    dropout: float = 0.0


class Term(NamedTuple):
    """Queries and keys to be multiplied, and where that product counts (None: everywhere)."""

    q_BNTH: Tensor
    k_BKSH: Tensor
    region: Tensor | None = None  # (T, S) or (B, T, S) bool


class Cost(NamedTuple):
    """What a part says that it costs, of one text; None where it does not say. See `llmlab.slots`, "What parts cost"."""

    flops: float | None = None  # of a forward of all the text's tokens; a product of (m, k) and (k, n) is 2 m k n
    kv: int | None = None  # of attention: numbers that a token leaves in the cache


class Routing(NamedTuple):
    """Where tokens go: weights (n, k), experts (n, k) int64, and a mean auxiliary loss over the valid tokens or None."""

    weights: Tensor
    experts: Tensor
    loss: Tensor | None = None


class Choice(NamedTuple):
    """Where experts choose: weights (E, c), tokens (E, c) int64, each expert's rows of the n; the loss as of Routing."""

    weights: Tensor
    tokens: Tensor
    loss: Tensor | None = None


@dataclass(frozen=True)
class Rollout:
    """How an objective acts on prompts: it generates answers, and learns from them for `batches` x `epochs` optimizer steps.

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
