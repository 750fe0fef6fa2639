"""MPNet's pre-training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from llmlab.registry import register
from llmlab.slots import LanguageModel, Loss, Pass, Vocabulary

from ._loss import IGNORED, targets
from ._masking import known_words
from ._queries import asked, asked_loss, ordinary, places, special_table


@register("objective", "mpnet")
class MaskedPermutedLM:
    """Masked and permuted language modelling with two streams (MPNet: Song et al. 2020, arXiv:2004.09297).

    A share `rate` of the T tokens, P of them drawn at random, by themselves or by words, is predicted in a random order: each
    from all tokens that are no targets, from the targets before it, and from placeholders of itself and of those behind it,
    which compensate for their positions. The text has P placeholders and P queries behind it, of which nobody sees a query:
    ids, positions, rank, placeholders, queries and labels (T + 2 P,), labels at queries alone. A target's placeholder and its
    query are shown as the mask token with probability `masked`, as a random ordinary token with `random`, else as the target.
    """

    mask = "compensated"
    heads = {"tokens": "mlm"}
    special = ("mask",)
    topologies = ("encoder", "decoder")
    measures = {"nll": "nll", "accuracy": "accuracy"}
    gives = ("rank", "queries", "placeholders")
    restores = "queries"
    telling = (
        {"rate": 0.01},
        {"rate": 1.0},
        {"rate": 0.5, "masked": 0.2, "random": 0.6},
        {"rate": 0.3, "whole_words": True},
    )
    fixed_counts = False

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        /,
        *,
        rate: float = 0.15,  # share of tokens that are predicted
        masked: float = 0.8,  # share of targets whose placeholder is the mask token
        random: float = 0.1,  # share of targets whose placeholder is a random token
        whole_words: bool = False,  # all tokens of a word are targets or none, but of the last one (the paper's)
    ):
        if not 0 < rate <= 1 or masked < 0 or random < 0 or masked + random > 1:
            raise ValueError(
                f"objective.rate must be in (0, 1] and objective.masked + objective.random at most 1, "
                f"but they are {rate} and {masked} + {random}"
            )
        self.seq_len, self.masked, self.random = seq_len, masked, random
        self.n_queries = max(1, round(seq_len * rate))
        self.mask_id = vocabulary.special["mask"]
        self.is_special = special_table(vocabulary)
        self.words = known_words(vocabulary, "objective.whole_words=true") if whole_words else None
        self.ordinary = np.flatnonzero(~self.is_special)
        # A random token may be the target.
        self.shown = max(0.0, 1 - masked - random + random / len(self.ordinary))

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        text = np.array(sample["tokens"], dtype=np.int64)[: self.seq_len]
        may = np.flatnonzero(ordinary(sample, self.is_special)[: self.seq_len])
        n = self.n_queries
        rank, where, ranks, labels = asked(text, self._order(text, may, rng), n)
        fate, replacement = rng.random(n), self.ordinary[rng.integers(len(self.ordinary), size=n)]
        shown = np.where(fate < self.masked, self.mask_id, labels)
        shown = np.where((fate >= self.masked) & (fate < self.masked + self.random), replacement, shown)
        # The published code shows query and placeholder alike (masked_permutation_lm.py).
        shown = np.where(labels == IGNORED, self.mask_id, shown)
        documents = None if sample.get("documents") is None else np.asarray(sample["documents"])[: self.seq_len]
        at, stream = places(documents, len(text)), np.repeat([0, 1, 2], [len(text), n, n])
        prepared = {
            "ids": np.concatenate([text, shown, shown]),
            "positions": np.concatenate([at, at[where], at[where]]),
            # A placeholder of rank 0 stands for nothing, so that nobody sees it.
            "rank": np.concatenate([rank, rank[where], ranks]),
            "placeholders": stream == 1,
            "queries": stream == 2,
            "labels": np.concatenate([np.full(len(text) + n, IGNORED), labels]),
        }
        if documents is not None:
            prepared["documents"] = np.concatenate([documents, documents[where], documents[where]])
        return prepared

    def _order(self, text: np.ndarray, may: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The places of targets, of those that may be, in a random order."""
        n = min(self.n_queries, len(may))
        if self.words is None:
            return rng.choice(may, n, replace=False)
        # Words in a random order, of which the last is cut, as a window has the same number of targets always.
        words = rng.random(len(text))[self.words.numbers(text)[may]]
        return rng.permutation(may[words.argsort(kind="stable")][:n])

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        return targets(prepared)

    def passes(self, prepared: dict[str, Any]) -> list[Pass]:
        heads = {"tokens": targets(prepared)["nll"]}
        return [Pass(self.seq_len + 2 * self.n_queries, heads=heads, places=self.seq_len)]

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor]) -> Loss:
        output = model(batch, heads={"tokens": batch["labels"] != IGNORED})
        return asked_loss(output, batch["labels"])
