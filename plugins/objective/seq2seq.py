"""Texts from texts, learnt from pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from llmlab.registry import register
from llmlab.slots import LanguageModel, Loss, Vocabulary, Writing

from ._loss import IGNORED, targets, token_loss


@register("objective", "seq2seq")
class SequenceToSequence:
    """A target from its source, as a translation (Sutskever et al. 2014, arXiv:1409.3215), by an encoder and a decoder.

    Teacher forcing: the encoder reads the source, ended by eos, the decoder the target shifted right behind pad (T5: Raffel
    et al. 2019, arXiv:1910.10683, section 2.1), and each token of the target and its eos are predicted from the source and
    those before. Cross-entropy in nats. source_ids (S,), ids and labels (T,).
    """

    reads = "pairs"
    collate = "pad"
    mask = "causal"
    heads = {"tokens": "lm"}
    special = ("pad", "eos")
    topologies = ("encoder_decoder",)
    measures = {"nll": "nll"}

    def __init__(self, vocabulary: Vocabulary, seq_len: int, /):
        self.eos, self.pad = vocabulary.special["eos"], vocabulary.special["pad"]

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        source, target = (np.asarray(sample[key], dtype=np.int64) for key in ("source", "target"))
        # T5 ends both texts; a BART or mT5 tokenizer may end the source itself.
        ended = source if len(source) and source[-1] == self.eos else np.append(source, self.eos)
        return {"source_ids": ended, "ids": np.append(self.pad, target[:-1]), "labels": target}

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        return targets(prepared)

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor]) -> Loss:
        where = batch["labels"] != IGNORED
        output = model(batch, heads={"tokens": where})
        return token_loss(output, output.heads["tokens"], batch["labels"][where])

    def writing(self, prepared: Mapping[str, Any]) -> Writing:
        return Writing(prepared["source_ids"].tolist(), prepared["labels"].tolist(), self.pad)


@register("objective", "seq2seq_decoder")
class ConditionalLM:
    """A target behind its source in one stack, with a loss on the target alone (Liu et al. 2018, arXiv:1801.10198).

    Teacher forcing: `sep` stands between the two, and each token of the target and its eos are predicted from all before.
    Cross-entropy in nats. With mask=prefix the source sees all of itself (Raffel et al. 2019, arXiv:1910.10683, section
    3.2.1). ids and labels (T,); prefix_len (), the tokens of the source and sep.
    """

    reads = "pairs"
    collate = "pad"
    mask = "causal"
    heads = {"tokens": "lm"}
    special = ("sep", "eos")
    topologies = ("decoder", "encoder")  # under the prefix mask the source looks ahead
    measures = {"nll": "nll"}
    gives = ("prefix_len",)

    def __init__(self, vocabulary: Vocabulary, seq_len: int, /):
        self.sep = vocabulary.special["sep"]

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        source, target = (np.asarray(sample[key], dtype=np.int64) for key in ("source", "target"))
        known = np.append(source, self.sep)
        silent = np.full(len(known) - 1, IGNORED, dtype=np.int64)
        return {
            "ids": np.concatenate([known, target[:-1]]),
            "labels": np.concatenate([silent, target]),
            "prefix_len": np.asarray(len(known)),
        }

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        return targets(prepared)

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor]) -> Loss:
        where = batch["labels"] != IGNORED
        output = model(batch, heads={"tokens": where})
        return token_loss(output, output.heads["tokens"], batch["labels"][where])

    def writing(self, prepared: Mapping[str, Any]) -> Writing:
        known = int(prepared["prefix_len"])
        return Writing(prepared["ids"][:known].tolist(), prepared["labels"][known - 1 :].tolist())
