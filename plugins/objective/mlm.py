"""Masked language modelling, alone or with a task on pairs of texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from llmlab.registry import register
from llmlab.slots import LanguageModel, Loss, Vocabulary

from ._loss import IGNORED, token_loss
from ._loss import targets as token_targets
from ._masking import Masking, Runs, given_of, known_words
from ._pairs import Pairs


@register("objective", "mlm")
class MaskedLM:
    """Masked language modelling (BERT: Devlin et al. 2018, arXiv:1810.04805).

    Each ordinary token is a target with probability `rate`, at least one a sample. A target is shown as the mask token
    with probability `masked`, as a random ordinary token with `random`, else as it is. ids and labels (T,).

    ngram: targets come in runs of n <= ngram tokens (of words where these are whole), n with a probability that goes as 1/n
    (ALBERT: Lan et al. 2019, arXiv:1909.11942, section 4.1). Runs may touch; each token is still a target with `rate`.

    pair: a second term, the cross-entropy of two classes of a pair of texts, [CLS] A [SEP] B [SEP] with segments 0 and 1. A and
    B are neighbours in the window, in one document where documents are told apart, cut at a random token as long as there are
    no sentences. nsp (Devlin et al. 2018): half of the time B is text from another window, class 1. sop, sentence order
    (ALBERT: Lan et al. 2019, arXiv:1909.11942): half of the time A and B change places, class 1. pair_labels ().
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
        {"whole_words": True, "rate": 0.4},
        {"whole_words": True, "rate": 1e-9},
        {"duplicates": 3},
        {"pair": "nsp", "rate": 0.4},
        {"pair": "nsp", "rate": 0.4, "short": 0.6},
        {"pair": "sop", "rate": 0.4, "short": 0.0, "whole_words": True},
        {"ngram": 2, "rate": 0.2},
        {"ngram": 8, "rate": 0.4, "whole_words": True},
    )
    fixed_counts = False
    when = {
        "pair=nsp": {
            "heads": {"pair": "pooled"},
            "special": ("cls", "sep"),
            "measures": {"nsp": "loss", "pair_accuracy": "accuracy"},
            "restores": "pair",
            "collate": "pad",
            "other": True,
            "segments": 2,
        },
        "pair=sop": {
            "heads": {"pair": "pooled"},
            "special": ("cls", "sep"),
            "measures": {"sop": "loss", "pair_accuracy": "accuracy"},
            "restores": "pair",
            "collate": "pad",
            "segments": 2,
        },
    }

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        /,
        *,
        rate: float = 0.15,  # share of tokens that are targets
        masked: float = 0.8,  # share of targets shown as the mask token
        random: float = 0.1,  # share of targets shown as a random token
        whole_words: bool = False,  # all tokens of a word are targets or none
        ngram: int = 1,  # longest run of tokens, or of whole words, that are masked as one (ALBERT: 3)
        duplicates: int = 0,  # 0: masked anew in each epoch (RoBERTa); n: once, in n copies, an epoch each in turn (BERT: 10)
        pair: Literal["none", "nsp", "sop"] = "none",  # a task on pairs of texts, as a second term
        short: float | None = None,  # share of pairs of a random length that is shorter; None: 0.1, as BERT and ALBERT
    ):
        self.masking = Masking(vocabulary, rate, masked, random)
        if ngram < 1:
            raise ValueError(f"objective.ngram must be at least 1 (tokens or words by themselves), but is {ngram}")
        self.runs = Runs(rate, ngram)
        if duplicates < 0:
            raise ValueError(f"objective.duplicates must be at least 0, but is {duplicates}")
        self.seq_len, self.shown, self.repeats = seq_len, self.masking.shown, duplicates
        self.words = known_words(vocabulary, "objective.whole_words=true") if whole_words else None
        if pair == "none" and short is not None:
            raise ValueError(f"objective.short={short} is of pairs: add objective.pair=nsp or sop, or leave it out")
        self.term = pair
        self.pairs = None if pair == "none" else Pairs(pair, vocabulary, seq_len, 0.1 if short is None else short)

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if self.pairs is not None:
            pair = self.pairs.prepare(sample, rng)
            return {**self._masked(pair["ids"], None, rng), "segments": pair["segments"], "pair_labels": pair["label"]}
        tokens = np.array(sample["tokens"], dtype=np.int64)[: self.seq_len]
        prepared = self._masked(tokens, given_of(sample, self.seq_len), rng)
        if sample.get("documents") is not None:
            prepared["documents"] = np.asarray(sample["documents"], dtype=np.int64)[: self.seq_len]
        return prepared

    def _masked(self, tokens: np.ndarray, given: np.ndarray | None, rng: np.random.Generator) -> dict[str, np.ndarray]:
        may = self.masking.may(tokens, given)
        word = np.arange(len(tokens)) if self.words is None else self.words.numbers(tokens)
        chosen = may & self.runs.drawn(len(tokens), rng)[word]
        # BERT's create_pretraining_data.py takes at least one as well.
        if not chosen.any():
            candidates = np.flatnonzero(may) if may.any() else np.arange(len(tokens))
            at = rng.choice(candidates)
            chosen = may & (word == word[at])
            chosen[at] = True
        # Each token of a word has a fate of its own, as in BERT's script.
        ids = self.masking.corrupt(tokens, chosen, rng.random(len(tokens)), rng)
        return {"ids": ids, "labels": np.where(chosen, tokens, IGNORED)}

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        return token_targets(prepared) | ({self.term: 1} if "pair_labels" in prepared else {})

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor]) -> Loss:
        where = batch["labels"] != IGNORED
        pair: dict[str, Tensor | None] = {} if self.pairs is None else {"pair": None}
        # The head sees targets alone: in BERT base the token table takes 23M products a token, a layer 7M.
        output = model(batch, heads={"tokens": where, **pair})
        logits, labels = output.heads["tokens"], batch["labels"][where]
        right = (logits.detach().argmax(-1) == labels).sum()
        loss = token_loss(output, logits, labels, {"accuracy": (right, where.sum())})
        if self.pairs is None:
            return loss
        scores, classes = output.heads["pair"], batch["pair_labels"]
        count = torch.tensor(len(scores), device=scores.device)
        total = F.cross_entropy(scores.float(), classes, reduction="sum")
        right = (scores.detach().argmax(-1) == classes).sum()
        return loss._replace(
            terms={**loss.terms, self.term: (total, count)}, logs={**loss.logs, "pair_accuracy": (right, count)}
        )
