"""Masking of spans, and their prediction from their boundaries."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from llmlab.registry import register
from llmlab.slots import LanguageModel, Loss, Pass, Vocabulary

from ._loss import IGNORED, token_loss
from ._loss import targets as token_targets
from ._masking import Masking, given_of, known_words

Array = np.ndarray


@register("objective", "span_mlm")
class SpanMaskedLM:
    """Span masking with the span boundary objective (SpanBERT: Joshi et al. 2020, arXiv:1907.10529).

    Of [CLS] text [SEP] a share `rate` of the ordinary tokens is masked, in spans of whole words: lengths are geometric, spans
    begin at a word anywhere, and the last word is cut where the share is reached. All tokens of a span are masked tokens, or
    random ones, or as they are. Each is predicted twice: by the head `tokens` from itself, and by the head `boundary` from the
    tokens beside its span and its place in it. Spans that touch are one span, so that those tokens are seen.

    ids and labels (T,); for P targets, as many as a text has at most, boundary_left, boundary_right, boundary_offset and
    boundary_labels (P,), -100 where there are fewer.
    """

    mask = "bidirectional"
    heads = {"tokens": "mlm", "boundary": "boundary"}
    special = ("mask", "cls", "sep")
    topologies = ("encoder", "decoder")
    measures = {"nll": "nll", "accuracy": "accuracy", "boundary": "loss"}
    restores = "framed"
    telling = (
        {"masked": 0.2, "random": 0.6},
        {"masked": 0.0, "random": 0.0},
        {"rate": 0.4, "stop": 0.9},
        {"rate": 0.4, "longest": 2, "stop": 0.05},
    )
    fixed_counts = False

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        /,
        *,
        rate: float = 0.15,  # share of tokens that are masked
        masked: float = 0.8,  # share of spans shown as mask tokens
        random: float = 0.1,  # share of spans shown as random tokens
        stop: float = 0.2,  # p of the geometric distribution: that a span ends behind a word
        longest: int = 10,  # words of a span
    ):
        self.masking = Masking(vocabulary, rate, masked, random)
        if not 0 < stop <= 1 or longest < 1:
            raise ValueError(
                f"objective.stop must be in (0, 1] and objective.longest at least 1, but they are {stop} and {longest}"
            )
        if seq_len < 3:
            raise ValueError(
                f"objective=span_mlm needs data.seq_len of at least 3, for a token between cls and sep, but it is {seq_len}"
            )
        self.seq_len, self.rate, self.shown = seq_len, rate, self.masking.shown
        self.words = known_words(vocabulary, "objective=span_mlm, whose spans are of whole words,")
        self.cls, self.sep = ([vocabulary.special[name]] for name in ("cls", "sep"))
        # Longer ones are drawn again, not cut: the paper's mean of 3.8 words is that of this distribution.
        law = (1 - stop) ** np.arange(longest)
        self.law = (law.cumsum() / law.sum())[:-1]  # that a span has no more than 1, 2 ... words
        self.most = math.ceil(rate * (seq_len - 2))

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        length = self.seq_len - 2
        text = np.asarray(sample["tokens"], dtype=np.int64)[:length]
        tokens = np.concatenate([self.cls, text, self.sep])
        given = given_of(sample, length)
        may = self.masking.may(tokens, None if given is None else np.concatenate([[False], given, [False]]))
        prepared: dict[str, Any] = {}
        if sample.get("documents") is not None:
            # cls is of the first document, sep of the last. A span has a token of its own document on either side.
            documents = np.pad(np.asarray(sample["documents"], dtype=np.int64)[:length], 1, mode="edge")
            same = documents[1:] == documents[:-1]
            may &= np.append(False, same) & np.append(same, False)
            prepared["documents"] = documents
        chosen = self._spans(may, self.words.numbers(tokens), rng)
        # Neither cls nor sep is chosen, so that each span has two edges; the second is the token behind it.
        edges = np.flatnonzero(chosen[1:] != chosen[:-1]).reshape(-1, 2) + 1
        place = np.flatnonzero(chosen)
        begin, end = np.repeat(edges, edges[:, 1] - edges[:, 0], axis=0).T
        # One draw a span: all of its tokens have the fate of its first.
        fate = rng.random(len(tokens))
        fate[place] = fate[begin]
        return prepared | {
            "ids": self.masking.corrupt(tokens, chosen, fate, rng),
            "labels": np.where(chosen, tokens, IGNORED),
            "boundary_left": self._row(begin - 1),
            "boundary_right": self._row(end),
            "boundary_offset": self._row(place - begin),
            "boundary_labels": self._row(tokens[place], IGNORED),
        }

    def _row(self, values: Array, rest: int = 0) -> Array:
        """Values of targets, as many as a text has at most."""
        row = np.full(self.most, rest, dtype=np.int64)
        row[: len(values)] = values
        return row

    def _spans(self, may: Array, word: Array, rng: np.random.Generator) -> Array:
        """True for tokens of spans. may: tokens that may be; word: the number of each one's word."""
        chosen = np.zeros(len(may), bool)
        budget = math.ceil(self.rate * int(may.sum()))
        while (left := budget - int(chosen.sum())) > 0:
            n_words = 1 + int(np.searchsorted(self.law, rng.random(), side="right"))
            at = int(rng.choice(np.flatnonzero(may & ~chosen)))
            # Up to the next token that may not be masked, on either side.
            walls = np.flatnonzero(~may)
            before, behind = walls[walls < at].max(initial=-1) + 1, walls[walls > at].min(initial=len(may))
            span = np.arange(before, behind)
            span = span[(word[span] >= word[at]) & (word[span] < word[at] + n_words)]
            new = span[~chosen[span]]
            chosen[new[:left]] = True
        return chosen

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        n = token_targets(prepared)
        return {**n, "boundary": n["nll"]}

    def passes(self, prepared: dict[str, Any]) -> list[Pass]:
        heads = {"tokens": self.targets(prepared)["nll"], "boundary": len(prepared["boundary_labels"])}
        return [Pass(len(prepared["ids"]), heads=heads)]

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor]) -> Loss:
        where = batch["labels"] != IGNORED
        output = model(batch, heads={"tokens": where, "boundary": None})
        logits, labels = output.heads["tokens"], batch["labels"][where]
        right = (logits.detach().argmax(-1) == labels).sum()
        loss = token_loss(output, logits, labels, {"accuracy": (right, where.sum())})
        targets = batch["boundary_labels"].flatten()
        scores = output.heads["boundary"].flatten(0, 1).float()
        nll = F.cross_entropy(scores, targets, ignore_index=IGNORED, reduction="sum")
        return loss._replace(terms={**loss.terms, "boundary": (nll, (targets != IGNORED).sum())})
