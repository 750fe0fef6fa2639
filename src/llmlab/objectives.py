"""The contract of an objective: what it is given, the loss that it returns, and what it says of its cost.

`llmlab.slots` offers all of it to parts; shapes as there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from llmlab.memory import Memory
from llmlab.values import Aux, Output


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
        # sum() of tensors would begin with an int, and take a kernel a model.
        return None if not losses else losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def sums(self, counts: Mapping[str, Tensor], shares: int = 1) -> dict[str, Tensor]:
        """Weighted sums of the terms, of which the first has in it a share of the balance loss.

        counts: of the whole step; shares: its micro-batches over all ranks. The sum over the step of a term's sums, divided by
        its count, is the term's weighted mean, and in the first the balance loss's mean over micro-batches is added.
        """
        balance, found = self.balance, {}
        for name, (value, _) in self.terms.items():
            if (weight := self.weights.get(name, 1.0)) != 1.0:  # else a kernel more in each micro-batch
                value = weight * value
            if balance is not None:
                # The trainer divides a term's sum by its count over the step, so that the count is multiplied in here.
                value, balance = value + balance * (counts[name].clamp(min=1) / shares), None
            found[name] = value
        return found

    def mean(self, counts: Mapping[str, Tensor] | None = None, shares: int = 1) -> Tensor:
        """The loss whose gradient, averaged over `shares` micro-batches, is that of the step; alone, of this micro-batch."""
        counts = self.counts if counts is None else counts
        # A micro-batch may have no target, a masked one of a short text for instance: 0 / 1 and no gradient, not 0 / 0.
        means = [value * (shares / counts[name].clamp(min=1)) for name, value in self.sums(counts, shares).items()]
        # Two kernels less in each micro-batch where there is one term, as in most objectives.
        return means[0] if len(means) == 1 else torch.stack(means).sum()


@dataclass(frozen=True)
class Pass:
    """One forward of a model over one prepared sample, which `llmlab plan`, a budget in FLOPs and the MFU count.

    tokens: that the model reads (an encoder-decoder's decoder); source: that its encoder does. model: a role, "model" for
    the one that is trained. trained: a backward follows, which costs twice the forward. heads: roles of the heads that are
    computed, and at how many of the tokens; None: at all. times: how often it is made each time that the sample is trained on,
    a share of 1 where it serves several (an answer that is generated once and learnt from in several epochs). places: positions
    that its tokens stand at, where a second stream stands at those of the text; None: one each. memory: tokens of a segment
    memory, which they see too. layers: numbers of the hidden states that are asked for, which costs nothing.
    """

    tokens: int
    source: int | None = None
    model: str = "model"
    trained: bool = True
    heads: Mapping[str, int | None] = field(default_factory=dict)
    times: float = 1.0
    places: int | None = None
    memory: int = 0
    layers: Sequence[int] = ()


class Words(NamedTuple):
    """Where words begin, by id: (V,) bool each. A token goes on with the word before it where it `continues` and that one is
    `open`."""

    continues: np.ndarray
    open: np.ndarray

    def numbers(self, ids: np.ndarray) -> np.ndarray:
        """The word of each token of a text (n,), counted from 0."""
        begins = ~(self.continues[ids[1:]] & self.open[ids[:-1]])
        return np.concatenate([np.zeros(min(len(ids), 1), np.int64), np.cumsum(begins)])


def _no_text(i: int) -> str:
    return ""


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer as an objective knows it: number of ids in use, and the ids of special tokens by name.

    Names: eos, pad, mask, cls, sep, sentinel_0, sentinel_1 ... An objective lists in `special` those it needs; of any other
    name NAME a token <|NAME|> is made.
    read_words: gives `words`, only when they are asked for, as the tokenizer has to be read for them.
    counts: how often each id is in the training text, (size,) int64, counted when it is called; None where there is no text.
    pairs(window): a function of ids a and b (...,) that says how often each two are near each other in the training text, as
    GloVe counts (`llmlab.data.pairs`), counted when it is asked for first and then kept; None where there is no text.
    text(id): what an id stands for, "" for a special one; an objective that asks for words or sentences reads it in its
    constructor.
    """

    size: int
    special: Mapping[str, int]
    read_words: Callable[[], Words | None] | None = field(default=None, compare=False, repr=False)
    counts: Callable[[], np.ndarray] | None = field(default=None, compare=False)
    pairs: Callable[[int], Callable[[np.ndarray, np.ndarray], np.ndarray]] | None = field(default=None, compare=False)
    text: Callable[[int], str] = field(default=_no_text, compare=False)

    @property
    def words(self) -> Words | None:
        """Where words begin; None where the tokenizer does not tell."""
        return None if self.read_words is None else self.read_words()


class Writing(NamedTuple):
    """What a model is to write. prompt: ids that it goes on with, or that its encoder reads; target: the ids of what is right;
    start: the id that an encoder-decoder's decoder begins with."""

    prompt: list[int]
    target: list[int]
    start: int | None = None


@dataclass(frozen=True)
class Rollout:
    """Rollouts of an objective that acts on prompts: it generates answers, and learns from them for `batches` x `epochs`
    optimizer steps.

    samples: answers to each prompt, which the model writes at `temperature`, of at most `max_new` tokens. batches: optimizer
    steps in which each answer is used once; epochs: how often. resample: times that other prompts are answered in place of
    those whose answers are all of one reward, at most.
    """

    samples: int
    max_new: int
    temperature: float = 1.0
    batches: int = 1
    epochs: int = 1
    resample: int = 0

    def __post_init__(self) -> None:
        if self.resample < 0:
            raise ValueError(f"alignment.resample must be at least 0, but is {self.resample}")
        if self.resample and self.samples < 2:
            raise ValueError(f"alignment.resample={self.resample} has no effect with alignment.samples={self.samples}")
        for name in ("samples", "max_new", "batches", "epochs"):
            # ValueError: a part's constructor raises it, and what builds the part makes a line of it.
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"alignment.{name} must be at least 1, but is {value}")
        if not self.temperature > 0:
            raise ValueError(f"alignment.temperature must be more than 0, but is {self.temperature}")

    @property
    def steps(self) -> int:
        """Optimizer steps between two rollouts."""
        return self.batches * self.epochs


class Answers(NamedTuple):
    """The answers of a rollout, as a method that acts is told of them: N answers, of which `samples` in a row are to one
    prompt, A tokens of the longest; 0 past the end of a shorter one.

    log_probabilities (N, A) of each token as it was drawn; truncated (N,) bool: the answer has no end, as it became too long.
    measured: what `measure` gave, (N, A) of tokens or (N,) of answers, by name.
    """

    rewards: np.ndarray
    lengths: np.ndarray
    truncated: np.ndarray
    log_probabilities: np.ndarray
    measured: Mapping[str, np.ndarray]
    samples: int


class LanguageModel(Protocol):
    """A model as an objective calls it. heads: role -> the rows (B, T) bool that the head sees, None for all of them.

    A batch of `hidden` (B, T, D) alone is read by its heads: of another model that has none of its own.

    memory: of a model with one stack; what it holds is seen before the batch's tokens, and it is extended by them.
    layers: numbers of hidden states that `Output.layers` is to have, 0 being the embedding's and -1 the last layer's.
    """

    def __call__(
        self,
        batch: Mapping[str, Tensor],
        heads: Mapping[str, Tensor | None] | None = None,
        memory: Memory | None = None,
        layers: Sequence[int] = (),
    ) -> Output: ...


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

    `learns` names what alone learns, in the words of `train.learns`, unless the user says otherwise.

    `other`: a sample comes with the key "other", another sample of the same part that is drawn for it, where there is more than
    one. `segments`: of how many kinds of segments its samples are, which a model must tell apart.

    `collate` says how samples become a batch: "stack" those of one shape; "pad" records, or "pack" them into windows. Of a
    sample of several sequences `row_ids`, `row_segments` ... are lists of arrays, in the batch (B, R, T) with `row_valid`.

    An objective that is `joint` has an attribute `gather`, a function of rows (B, ...) -> (rows, 0); where several
    ranks train it is set to one that gives the rows of all ranks, (ranks x B, ...) in their order, with gradients to each, and
    the number of its own first row.

    `prepare(sample, rng)` on a CPU worker: sample {"tokens": (seq_len + 1,) int64, "documents": (seq_len + 1,) int64}, or of a
    record what `llmlab.data.records.RecordSamples` says of its kind -> a dict of numpy arrays. "given" (seq_len + 1,) bool,
    where it is there, is True of tokens that are no text of their own, which are no targets. `targets(prepared)` -> number of
    targets in it, by term. `optimum(case)`, if it has one, -> where a policy ends in a case so small that it is known
    (`llmlab.optima`), None where that is not. `passes(prepared)`, if it has one, -> the forwards that the loss makes of one
    sample; else it is one of the trained model and of each companion over `ids` (and `source_ids`), heads at the
    targets. `loss(model, batch, **companions)` -> Loss; companions are the models of `models`, by role. `writing(prepared)`,
    if it has one, -> Writing: at
    the end of a run and in `llmlab eval` a model's texts are compared with what is right. `best_spans(model, batch)`, if it has
    one, of questions -> (first, last, score, none), (B,) each: the same of answers in their contexts. `shown` (else 0): the
    share of targets whose answer the model is shown. `repeats` (else 0): after so many epochs what is drawn for a sample is
    drawn again. `vectors(model)`, if it has one, -> (V, width): the vectors of tokens that it has made, where they are not the
    token table (`init_from.embedding`, `llmlab export format=word2vec`); `spelled(model, words)`, if it is not None, ->
    (n, width) of any words.

    A batch has what `prepare` gave, of records padded by the token with `valid` (and `source_valid`) beside, and of packed ones
    `documents` and `positions`; and from the framework `counts` {term: int64 scalar}, targets of the whole optimizer step.
    Batch keys that the model reads: see `llmlab.model.model.Model.forward`. A key that neither the loss nor a model reads is
    an error when the first batch is seen, but for those that the objective `gives`.
    """

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]: ...
    def targets(self, prepared: dict[str, Any]) -> dict[str, int]: ...
    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor], **companions: LanguageModel) -> Loss: ...


class Acts(Objective, Protocol):
    """An objective that reads prompts and learns from answers of its own: an Objective with what follows.

    rollout: how it rolls out. One that learns from the answers to a prompt `together` has a sample of each prompt, in which
    "answers" and everything else are lists; a batch then is of so many prompts. `measure(model, batch, **companions)`, if
    it has one, is asked of a rollout's single answers, as `prepare` and collation make batches of them, without gradients and
    before anything is learnt: by name (B, T) where the labels are, or (B,). `credit(answers)` -> by name (N, A) of
    tokens or (N,) of answers: what `prepare` finds in a sample beside "prompt", "answer", "log_probabilities", "reward" and
    "truncated". What later rollouts depend on beside the weights, `state()` gives, plain values, and `load(state)` takes, if
    it has them.
    """

    rollout: Rollout

    def credit(self, answers: Answers) -> Mapping[str, np.ndarray]: ...


class Scored(list[float]):
    """Rewards of answers, and other numbers of each that are shown, by name: those that the reward declares in `shows`."""

    def __init__(self, scores: Iterable[float], shown: Mapping[str, Sequence[float]]):
        super().__init__(scores)
        self.shown = shown


class Reward(Protocol):
    """reward(/): what an answer is worth, to an objective that reads prompts.

    `score(records, answers)` -> a finite number an answer. A record has the keys of the user's file, "prompt" among them; an
    answer is the text that the model gave, special tokens left out. `needs`, if it is there: other keys than
    "prompt" that every record must have. `models`, if it is there, declares finished models by role, as an objective does: they
    come as keyword arguments of `score`, and beside them `batch`, each prompt with its answer and the end token: `ids` (B, T),
    padded at their end where `valid` (B, T) is False. `shows`, if it is there, names numbers of an answer that a run
    shows beside its reward, as means: `score` then gives them in a `Scored`.
    """

    needs: Sequence[str]

    def score(self, records: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> Sequence[float]: ...
