"""Permutation language modelling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmlab.registry import register
from llmlab.slots import LanguageModel, Loss, Memory, Pass, Vocabulary

from ._loss import IGNORED, targets
from ._queries import NOWHERE, asked, asked_loss, ordinary, places, ranks_of, special_table


@register("objective", "plm")
class PermutationLM:
    """Permutation language modelling with two streams (XLNet: Yang et al. 2019, arXiv:1906.08237).

    One in `one_in` tokens is a target, in spans of up to `max_span` tokens. Targets are predicted in a random order: each from
    all tokens that are no targets and from the targets before it. A text of T tokens has P = T / one_in queries behind it, of
    which nobody sees any: ids, positions, rank, queries and labels (T + P,), labels at queries alone.

    A span of L tokens, drawn with a probability of 1/L, stands anywhere in a context of one_in x L tokens, contexts one behind
    the other, and what is missing to P at the end is drawn from all other tokens. With `memory` the first so many tokens of a
    window are a segment of their own, read under an order of its own without gradient; what each layer is given of them is the
    memory of the rest. The paper remembers it from the step before instead, at that step's weights. As a memory holds only what
    came before, it reads half of a batch from the ends of texts (section 3.1): so is a share `backwards` of windows here.
    """

    mask = "permutation"
    heads = {"tokens": "lm"}
    special = ("mask",)
    topologies = ("encoder", "decoder")
    measures = {"nll": "nll", "accuracy": "accuracy"}
    gives = ("rank", "queries")
    restores = "queries"
    telling = (
        {"one_in": 1},
        {"one_in": 2, "max_span": 8},
        {"one_in": 2, "memory": 5},
        {"one_in": 2, "memory": 5, "backwards": 1.0},
    )
    fixed_counts = False

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        /,
        *,
        one_in: int = 6,  # one in so many tokens is a target (the paper's K); 1: all
        max_span: int = 5,  # longest span of targets
        memory: int = 0,  # tokens of each window that are read first, without gradient, and are no targets
        backwards: float = 0.0,  # share of windows that are read from their ends (XLNet, with its memory: 0.5)
    ):
        for name, value in (("one_in", one_in), ("max_span", max_span)):
            if value < 1:
                raise ValueError(f"objective.{name} must be at least 1, but is {value}")
        if not 0 <= memory < seq_len:
            raise ValueError(f"objective.memory must be in [0, data.seq_len={seq_len}), but is {memory}")
        if not 0 <= backwards <= 1:
            raise ValueError(f"objective.backwards must be in [0, 1] (0: none; XLNet has 0.5), but is {backwards}")
        self.backwards = backwards
        self.seq_len, self.one_in, self.memory = seq_len, one_in, memory
        self.n_queries = max(1, (seq_len - memory) // one_in)
        # The published data_utils.py (_sample_mask) prefers short spans so; the paper doesn't say.
        chances = 1 / np.arange(1, max_span + 1)
        self.chances = (chances / chances.sum()).cumsum()
        self.mask_id = vocabulary.special["mask"]
        self.is_special = special_table(vocabulary)

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if self.backwards and rng.random() < self.backwards:
            keys = [key for key in ("tokens", "given", "documents") if sample.get(key) is not None]
            sample = {key: sample[key][: self.seq_len][::-1] for key in keys}
        tokens = np.array(sample["tokens"], dtype=np.int64)[: self.seq_len]
        may = ordinary(sample, self.is_special)[: self.seq_len]
        documents = None if sample.get("documents") is None else np.asarray(sample["documents"])[: self.seq_len]
        n, m, text = self.n_queries, self.memory, tokens[self.memory :]
        rank, where, ranks, labels = asked(text, self._order(may[m:], n, rng), n)
        before, own = np.split(np.zeros(len(tokens), np.int64) if documents is None else documents, [m])
        # In its document nothing may come before a target. It sees itself then, or the memory's part of the document alone.
        earlier = (own == own[where][:, None]) & (rank < ranks[:, None])
        first = np.where(np.isin(own[where], before) & (labels != IGNORED), 0, NOWHERE)
        ranks = np.where(earlier.any(1), ranks, first)
        at = m + np.arange(len(text)) if m else places(documents, len(text))
        prepared = {
            # A query's id is that of the mask for embeddings which, unlike XLNet's, have no vector for queries.
            "ids": np.append(text, np.full(n, self.mask_id)),
            "positions": np.append(at, at[where]),
            "rank": np.append(rank, ranks),
            "queries": np.arange(len(text) + n) >= len(text),
            "labels": np.append(np.full(len(text), IGNORED), labels),
        }
        if documents is not None:
            prepared["documents"] = np.append(own, own[where])
        if m:
            prepared["before_ids"] = tokens[:m]
            prepared["before_rank"] = ranks_of(self._order(may[:m], m // self.one_in, rng), m)
            if documents is not None:
                prepared["before_documents"] = before
        return prepared

    def _order(self, may: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        """Places of n targets, or of as many as there may be, in a random order."""
        n, chosen, begin = min(n, int(may.sum())), np.zeros(len(may), dtype=bool), 0
        while (left := n - int(chosen.sum())) > 0:
            # rng.choice(p=) takes ten times as long. Rounding may leave the last sum below 1.
            span = 1 + min(int(self.chances.searchsorted(rng.random(), "right")), len(self.chances) - 1, left - 1)
            start = begin + int(rng.integers(span * self.one_in - span + 1))
            if start + span > len(may):
                break
            chosen[start : start + span] = may[start : start + span]
            begin += span * self.one_in
        more = rng.choice(np.flatnonzero(may & ~chosen), n - int(chosen.sum()), replace=False)
        return rng.permutation(np.append(np.flatnonzero(chosen), more))

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        return targets(prepared)

    def passes(self, prepared: dict[str, Any]) -> list[Pass]:
        text, m = self.seq_len - self.memory, self.memory
        heads = {"tokens": targets(prepared)["nll"]}
        own = Pass(text + self.n_queries, heads=heads, places=text, memory=m)
        return [Pass(m, trained=False), own] if m else [own]

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor]) -> Loss:
        heads: dict[str, Tensor | None] = {"tokens": batch["labels"] != IGNORED}
        output = self._behind(model, batch, heads) if self.memory else model(batch, heads=heads)
        return asked_loss(output, batch["labels"])

    def _behind(self, model: LanguageModel, batch: Mapping[str, Tensor], heads: dict[str, Tensor | None]) -> Any:
        """The output for the text behind its memory."""
        memory, rank = Memory(), batch["before_rank"]
        nobody = torch.zeros_like(rank, dtype=torch.bool)
        first = {"ids": batch["before_ids"], "rank": rank, "queries": nobody}
        text = {
            "ids": batch["ids"],
            "positions": batch["positions"],
            # All that is remembered comes before all of the text.
            "rank": torch.cat([torch.full_like(rank, NOWHERE), batch["rank"]], 1),
            "queries": torch.cat([nobody, batch["queries"]], 1),
        }
        if "documents" in batch:
            # A model takes no documents beside a memory, but it takes pairs.
            before, own = batch["before_documents"], batch["documents"]
            first["allowed"] = before[:, :, None] == before[:, None]
            text["allowed"] = own[:, :, None] == torch.cat([before, own], 1)[:, None]
        with torch.no_grad():
            model(first, heads={}, memory=memory)
        return model(text, heads=heads, memory=memory)
