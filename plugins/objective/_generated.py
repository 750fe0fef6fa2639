"""Tokens that a generator fills in: what objectives with one share (ELECTRA: Clark et al. 2020, arXiv:2003.10555)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from llmlab.slots import Aux, LanguageModel, Vocabulary, auxiliary

from ._loss import IGNORED

OWN = ("ids", "labels", "chance", "judged")  # keys of the batch that the objective reads itself


class Masking:
    """Masked texts for a generator. Of n ordinary tokens ceil(rate n) are chosen, none twice."""

    def __init__(self, vocabulary: Vocabulary, seq_len: int, rate: float, masked: float):
        if not 0 < rate <= 1 or not 0 <= masked <= 1:
            raise ValueError(
                f"objective.rate must be in (0, 1] and objective.masked in [0, 1], but they are {rate} and {masked}"
            )
        self.seq_len, self.rate, self.masked = seq_len, rate, masked
        self.mask_id = vocabulary.special["mask"]
        self.special_ids = np.array(sorted(vocabulary.special.values()), dtype=np.int64)

    def prepare(self, sample: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """ids, labels (T,): what the generator reads, and the chosen tokens. chance (T,) float64 in [0, 1): which token is
        drawn there. judged (T,) bool: tokens that are text, special ones among them."""
        tokens = np.array(sample["tokens"], dtype=np.int64)[: self.seq_len]
        given = sample.get("given")
        judged = np.ones(len(tokens), bool) if given is None else ~np.asarray(given)[: self.seq_len]
        may = np.flatnonzero(judged & ~np.isin(tokens, self.special_ids))
        # Orders of all places, so that what is drawn after it does not depend on how many may be chosen.
        order = rng.random(len(tokens))
        # A product such as 0.15 x 20 = 3.0000000000000004 would be rounded up by one.
        number = math.ceil(round(self.rate * len(may), 9))
        chosen = np.zeros(len(tokens), bool)
        chosen[may[np.argsort(order[may])[:number]]] = True
        hidden = chosen & (rng.random(len(tokens)) < self.masked)
        prepared = {
            "ids": np.where(hidden, self.mask_id, tokens),
            "labels": np.where(chosen, tokens, IGNORED),
            "chance": rng.random(len(tokens)),
            "judged": judged,
        }
        if sample.get("documents") is not None:
            prepared["documents"] = np.asarray(sample["documents"], dtype=np.int64)[: self.seq_len]
        return prepared


class Generated(NamedTuple):
    """A batch that a generator has filled in. where (B, T) bool: the chosen tokens. original, ids (B, T): the text, and the
    same with drawn tokens at `where`. read: the batch for the model that reads it. nll, right: sums over the chosen tokens
    of the generator's cross-entropy (nats, float32) and of its best guesses that are the original."""

    where: Tensor
    original: Tensor
    ids: Tensor
    read: Mapping[str, Tensor]
    nll: Tensor
    right: Tensor
    aux: Aux


def generated(generator: LanguageModel, batch: Mapping[str, Tensor], size: int) -> Generated:
    """What a generator makes of a masked batch. size: ids in use, of which tokens are drawn."""
    where, more = batch["labels"] != IGNORED, {key: batch[key] for key in batch if key not in OWN}
    output = generator({**more, "ids": batch["ids"]}, heads={"tokens": where})
    logits, labels = output.heads["tokens"].float(), batch["labels"][where]
    original = torch.where(where, batch["labels"], batch["ids"])
    ids = original.clone()
    ids[where] = drawn(logits[:, :size], batch["chance"][where])
    return Generated(
        where,
        original,
        ids,
        {**more, "ids": ids},
        F.cross_entropy(logits, labels, reduction="sum"),
        (logits.detach().argmax(-1) == labels).sum(),
        auxiliary(output),
    )


def drawn(logits: Tensor, chance: Tensor) -> Tensor:
    """Ids (n,) from softmax(logits (n, V)), without gradient: the first whose cumulative probability is above chance (n,).

    The chance comes with the sample, so that a batch gives the same ids however it is cut.
    """
    # In float64: in float32 the sum over 30,000 ids is off by as much as a rare token has.
    cumulative = logits.detach().double().softmax(-1).cumsum(-1)
    found = torch.searchsorted(cumulative, chance.double()[:, None], right=True)[:, 0]
    # The last sum may round to less than 1.
    return found.clamp(max=logits.shape[-1] - 1)
