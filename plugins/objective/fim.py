"""Filling in the middle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor

from llmlab.registry import register
from llmlab.slots import LanguageModel, Loss, Pass, Vocabulary

from ._loss import IGNORED, targets, token_loss

PREFIX, SUFFIX, MIDDLE = -1, -2, -3  # in an order of places, where the sentinels stand
SENTINELS = 3


@register("objective", "fim")
class FillInTheMiddle:
    """Fill in the middle (Bavarian et al. 2022, arXiv:2207.14255): causal language modelling of rearranged documents.

    Each document of a window (it ends with eos) is rearranged with probability `rate`: it is cut at two places, all equally
    likely, and becomes PREFIX prefix SUFFIX suffix MIDDLE middle eos (PSM) or, with probability `spm`, PREFIX SUFFIX suffix
    MIDDLE prefix middle eos (SPM, as the paper trains both together). The sentinels take the room of as many tokens at the
    window's end, which are left out, so that no document is cut in its middle. ids and labels (T,), labels shifted by one: each
    token of the text once, but not the window's first, which is the last target of the window before, and no sentinel,
    which whoever asks for a middle gives.
    """

    mask = "causal"
    heads = {"tokens": "lm"}
    special = ("eos", "fim_prefix", "fim_suffix", "fim_middle")
    topologies = ("decoder",)
    measures = {"nll": "nll"}
    restores = "infilled"
    telling = ({"rate": 1.0}, {"rate": 0.0}, {"rate": 1.0, "spm": 0.0}, {"rate": 1.0, "spm": 1.0}, {"spm": 0.1})
    fixed_counts = False

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        /,
        *,
        rate: float = 0.5,  # share of documents that are rearranged
        spm: float = 0.5,  # share of these whose suffix comes first
    ):
        for name, value in (("rate", rate), ("spm", spm)):
            if not 0 <= value <= 1:
                raise ValueError(f"objective.{name} must be a share, in [0, 1], but is {value}")
        self.rate, self.spm, self.eos = rate, spm, vocabulary.special["eos"]
        self.sentinel_ids = np.array([vocabulary.special[f"fim_{n}"] for n in ("prefix", "suffix", "middle")])

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        tokens, documents = np.asarray(sample["tokens"], dtype=np.int64), sample.get("documents")
        given = np.zeros(len(tokens), bool) if sample.get("given") is None else np.asarray(sample["given"])
        places: list[np.ndarray] = []
        numbers: list[np.ndarray] = []
        room = len(tokens)
        for begin, end in self._documents(tokens, documents):
            if not room:
                break
            # Cut before it is rearranged: Megatron's and StarCoder's code cut behind, and lose the end of a middle.
            found = self._rearranged(begin + np.arange(min(end - begin, room - SENTINELS)), tokens, given, rng)
            if found is None:
                found = begin + np.arange(min(end - begin, room))
            places.append(found)
            numbers.append(np.full(len(found), 0 if documents is None else documents[begin]))
            room -= len(found)
        order = np.concatenate(places)
        # Sentinels stand behind the text, where -1, -2 and -3 find them.
        text = np.concatenate([tokens, self.sentinel_ids[::-1]])[order]
        silent = (order <= 0) | given[np.maximum(order, 0)]
        prepared = {"ids": text[:-1], "labels": np.where(silent, IGNORED, text)[1:]}
        if documents is not None:
            prepared["documents"] = np.concatenate(numbers).astype(np.int64)[:-1]
        return prepared

    def _documents(self, tokens: np.ndarray, documents: np.ndarray | None) -> Iterator[tuple[int, int]]:
        """(begin, end) of each."""
        ends = tokens[:-1] == self.eos
        if documents is not None:
            ends |= np.diff(documents) != 0
        edges = [0, *(np.flatnonzero(ends) + 1).tolist(), len(tokens)]
        return pairwise(edges)

    def _rearranged(
        self, places: np.ndarray, tokens: np.ndarray, given: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray | None:
        """The places of a document's tokens in their new order, sentinels among them; None where it stays as it is."""
        chosen, suffix_first = rng.random(2) < (self.rate, self.spm)
        # What begins every document (bos) stays in front, and its eos at the end.
        lead = int(np.argmin(given[places])) if len(places) and not given[places].all() else len(places)
        end = len(places) - int(len(places) > lead and tokens[places[-1]] == self.eos)
        if not chosen or end <= lead:
            return None
        before, body, behind = places[:lead], places[lead:end], places[end:]
        first, last = np.sort(rng.integers(len(body) + 1, size=2))
        prefix, middle, suffix = body[:first], body[first:last], body[last:]
        pieces = (
            [[SUFFIX], suffix, [MIDDLE], prefix, middle]
            if suffix_first
            else [prefix, [SUFFIX], suffix, [MIDDLE], middle]
        )
        return np.concatenate([before, [PREFIX], *pieces, behind]).astype(np.int64)

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        return targets(prepared)

    def passes(self, prepared: dict[str, Any]) -> list[Pass]:
        # The head reads sentinels too: picking the other tokens would cost more than it saves.
        return [Pass(len(prepared["ids"]), heads={"tokens": None})]

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor]) -> Loss:
        output = model(batch, heads={"tokens": None})
        return token_loss(output, output.heads["tokens"], batch["labels"])
