"""Pegasus' pre-training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from torch import Tensor

from llmlab.registry import register
from llmlab.slots import LanguageModel, Loss, Vocabulary

from ._loss import targets
from ._sentences import as_pair, decoder_loss, sentence_ends, sentences

Array = np.ndarray


@register("objective", "gap_sentences")
class GapSentences:
    """Gap sentences (Pegasus: Zhang et al. 2020, arXiv:1912.08777, section 3.1): the decoder writes those left out.

    Of each chosen sentence one mask token is left in the source; the target has these sentences in their order, then eos; the
    decoder sees it shifted right, beginning with pad. At least one is chosen, and one is left. source_ids (S,), ids and
    labels (T,).
    """

    mask = "causal"
    heads = {"tokens": "lm"}
    special = ("pad", "eos", "mask")
    topologies = ("encoder_decoder",)
    measures = {"nll": "nll"}
    collate = "pad"
    restores = "gaps"
    telling = ({"rate": 0.6}, {"rate": 0.6, "choice": "random"}, {"rate": 0.6, "choice": "lead"})

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        /,
        *,
        rate: float = 0.3,  # share of sentences that are left out
        choice: Literal["ind_orig", "random", "lead"] = "ind_orig",  # the likest by ROUGE-1 F1, any, or the first ones
    ):
        if not 0 < rate < 1:
            raise ValueError(f"objective.rate must be in (0, 1), but is {rate}")
        if seq_len < 2:
            raise ValueError(f"objective=gap_sentences needs data.seq_len of at least 2, but it is {seq_len}")
        self.length, self.rate, self.choice = seq_len - 1, rate, choice
        self.mask_id, self.eos, self.pad = (vocabulary.special[name] for name in ("mask", "eos", "pad"))
        self.ends = sentence_ends(vocabulary, "objective=gap_sentences")

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        tokens = np.asarray(sample["tokens"], dtype=np.int64)[: self.length]
        whole = sentences(tokens, self.ends)
        n = max(1, min(round(len(whole) * self.rate), len(whole) - 1))
        order = np.arange(len(whole))
        if self.choice == "random":
            order = rng.permutation(len(whole))
        elif self.choice == "ind_orig":
            # Stable: of equal ones the first.
            order = np.argsort([-rouge_1(one, tokens) for one in whole], kind="stable")
        chosen = set(order[:n].tolist())
        source = [np.array([self.mask_id]) if i in chosen else one for i, one in enumerate(whole)]
        return as_pair(source, [one for i, one in enumerate(whole) if i in chosen], self.eos, self.pad)

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        return targets(prepared)

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor]) -> Loss:
        return decoder_loss(model, batch)


def rouge_1(one: Array, text: Array) -> float:
    """F1 of the tokens of a sentence, as often as they occur, against those of the rest of its text."""
    own = Counter(one.tolist())
    rest = Counter(text.tolist())
    rest.subtract(own)
    common = sum(min(n, rest[token]) for token, n in own.items())
    # 2 common / (tokens of both) is the harmonic mean of precision and recall.
    return 2 * common / len(text)
