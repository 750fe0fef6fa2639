"""Values that travel between parts and the framework. `llmlab.slots` offers them to parts; shapes as there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

IGNORED = -100  # a label that is no target: PyTorch's default `ignore_index`, and what Hugging Face's collators write


class Aux(NamedTuple):
    """Output of a routed layer, and of a whole model, beside its hidden states. None where it has nothing to say."""

    loss: Tensor | None = None  # balance and z-loss, coefficients applied, a mean over a micro-batch's valid tokens
    tokens_per_expert: Tensor | None = None  # (E,) int64: valid tokens sent to each; of a stack or a model (n, E)


class Output(NamedTuple):
    """Output of a model: `hidden` (B, T, D) of its last stack, `heads[role]`, auxiliary losses, the source, and the hidden
    states of the `layers` that were asked for."""

    hidden: Tensor
    heads: dict[str, Tensor]
    aux: Aux | None
    source: Tensor | None = None  # an encoder-decoder's encoder output (B, S, D)
    layers: tuple[Tensor, ...] = ()  # (B, T, D) each, in the order in which they were asked for


def auxiliary(*outputs: Output) -> Aux:
    """The auxiliary output of one model over its forwards of a micro-batch: the mean of the balance losses, so that its
    coefficient means what it does with one forward; tokens of experts are added up."""
    found = [output.aux for output in outputs if output.aux is not None]
    losses = [aux.loss for aux in found if aux.loss is not None]
    tokens = [aux.tokens_per_expert for aux in found if aux.tokens_per_expert is not None]
    # One output, as of most objectives, costs no further kernel.
    return Aux(
        None if not losses else losses[0] if len(losses) == 1 else torch.stack(losses).mean(),
        None if not tokens else tokens[0] if len(tokens) == 1 else torch.stack(tokens).sum(0),
    )


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
    """The way from raw products to weights: s = softcap(scale q.k + bias), masked; then the sink; softmax; dropout."""

    scale: float
    softcap: float | None = None
    dropout: float = 0.0


class Term(NamedTuple):
    """Queries and keys to be multiplied, and where that product counts (None: everywhere)."""

    q_BNTH: Tensor
    k_BKSH: Tensor
    region: Tensor | None = None  # (T, S) or (B, T, S) bool


class Cost(NamedTuple):
    """Cost of a part as it says itself, of one text; None where it does not say. See `llmlab.slots`, "What parts cost"."""

    flops: float | None = None  # of a forward of all the text's tokens; a product of (m, k) and (k, n) is 2 m k n
    kv: int | None = None  # of attention: numbers that a token leaves in the cache


class Routing(NamedTuple):
    """A router's choice of experts for each token: weights (n, k), experts (n, k) int64, and a mean auxiliary loss over the
    valid tokens or None."""

    weights: Tensor
    experts: Tensor
    loss: Tensor | None = None


class Choice(NamedTuple):
    """A router's choice of tokens for each expert: weights (E, c), tokens (E, c) int64, each expert's rows of the n; the loss
    as of Routing."""

    weights: Tensor
    tokens: Tensor
    loss: Tensor | None = None
