"""Masked language modelling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from llmlab.registry import register
from llmlab.slots import LanguageModel, Loss, Vocabulary

from ._loss import IGNORED, targets, token_loss


@register("objective", "mlm")
class MaskedLM:
    """Masked language modelling (BERT: Devlin et al. 2018, arXiv:1810.04805).

    Each ordinary token is a target with probability `rate`, at least one a sample. A target is shown as the mask token
    with probability `masked`, as a random ordinary token with `random`, else as it is. ids and labels (T,).
    """

    mask = "bidirectional"
    heads = {"tokens": "mlm"}
    special = ("mask",)
    topologies = ("encoder", "decoder")
    measures = {"nll": "nll", "accuracy": "accuracy"}
    restores = "masked"
    telling = (
        {"rate": 0.5},
        {"rate": 1e-9},
        {"masked": 0.3},
        {"masked": 0.2, "random": 0.6},
        {"masked": 0.0, "random": 1.0},
        {"rate": 1.0, "masked": 0.0, "random": 0.0},
    )
    fixed_counts = False

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        /,
        *,
        rate: float = 0.15,  # share of tokens that are targets
        masked: float = 0.8,  # share of targets shown as the mask token
        random: float = 0.1,  # share of targets shown as a random token
    ):
        if not 0 < rate <= 1 or masked < 0 or random < 0 or masked + random > 1:
            raise ValueError(
                f"objective.rate must be in (0, 1] and objective.masked + objective.random at most 1, "
                f"but they are {rate} and {masked} + {random}"
            )
        self.seq_len, self.rate, self.masked, self.random = seq_len, rate, masked, random
        self.mask_id = vocabulary.special["mask"]
        self.special_ids = np.array(sorted(vocabulary.special.values()), dtype=np.int64)
        self.ordinary = np.setdiff1d(np.arange(vocabulary.size), self.special_ids)
        # A random token may be the one that was there.
        by_chance = random / len(self.ordinary)
        self.shown = max(0.0, 1 - masked - random + by_chance)

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        tokens = np.array(sample["tokens"], dtype=np.int64)[: self.seq_len]
        may = ~np.isin(tokens, self.special_ids)
        if sample.get("given") is not None:
            may &= ~sample["given"][: self.seq_len]
        # Each token by itself, as transformers' collator does; BERT's script takes a fixed 15 % of each text.
        chosen = may & (rng.random(len(tokens)) < self.rate)
        # BERT's create_pretraining_data.py takes at least one as well.
        if not chosen.any():
            candidates = np.flatnonzero(may) if may.any() else np.arange(len(tokens))
            chosen[rng.choice(candidates)] = True
        labels = np.where(chosen, tokens, IGNORED)
        # Drawn for every token, so that what is drawn after it does not depend on how many were chosen.
        fate = rng.random(len(tokens))
        # BERT's script draws from the whole vocabulary, [CLS] and [MASK] included, which text never has inside.
        replacement = self.ordinary[rng.integers(len(self.ordinary), size=len(tokens))]
        ids = np.where(chosen & (fate < self.masked), self.mask_id, tokens)
        ids = np.where(chosen & (fate >= self.masked) & (fate < self.masked + self.random), replacement, ids)
        prepared = {"ids": ids, "labels": labels}
        if sample.get("documents") is not None:
            prepared["documents"] = np.asarray(sample["documents"], dtype=np.int64)[: self.seq_len]
        return prepared

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        return targets(prepared)

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor]) -> Loss:
        where = batch["labels"] != IGNORED
        # The head sees targets alone: in BERT base the token table takes 23M products a token, a layer 7M.
        output = model(batch, heads={"tokens": where})
        logits, labels = output.heads["tokens"], batch["labels"][where]
        right = (logits.detach().argmax(-1) == labels).sum()
        return token_loss(output, logits, labels, {"accuracy": (right, where.sum())})
