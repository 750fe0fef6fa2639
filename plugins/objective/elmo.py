"""Prediction of the next token from the left, and of the one before from the right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from llmlab.registry import register
from llmlab.slots import LanguageModel, Loss, Pass, Vocabulary, auxiliary

from ._loss import IGNORED, cross_entropy


@register("objective", "elmo")
class BidirectionalLM:
    """A bidirectional language model (ELMo: Peters et al. 2018, arXiv:1802.05365, section 3.1): from the left and the right.

    ids, labels and previous (T,): each token but the first is predicted from those before it (forward, labels), and each but
    the window's last from those behind it (backward, previous). The gradient is that of the mean of the two, each a mean over
    its tokens. It takes layers in which the two directions never meet: attention=lstm_apart, block=residual and ffn=none.
    """

    mask = "bidirectional"
    heads = {"neighbours": "both_ways"}
    special = ()
    topologies = ("encoder",)
    measures = {"forward": "bits", "backward": "nll"}
    restores = "next"
    fixed_counts = True
    halves = True

    def __init__(self, vocabulary: Vocabulary, seq_len: int, /):
        pass

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        tokens = np.asarray(sample["tokens"], dtype=np.int64)
        targets = tokens.copy()
        if sample.get("given") is not None:
            targets[np.asarray(sample["given"])] = IGNORED
        # The last token of a window is a label alone: what reads from the right must not know it.
        prepared = {"ids": tokens[:-1], "labels": targets[1:], "previous": np.append(IGNORED, targets[:-2])}
        if sample.get("documents") is not None:
            prepared["documents"] = np.asarray(sample["documents"], dtype=np.int64)[:-1]
        return prepared

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        terms = {"forward": "labels", "backward": "previous"}
        return {name: int((prepared[key] != IGNORED).sum()) for name, key in terms.items()}

    def passes(self, prepared: dict[str, Any]) -> list[Pass]:
        return [Pass(len(prepared["ids"]), heads={"neighbours": None})]

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor]) -> Loss:
        output = model(batch, heads={"neighbours": None})
        forward, backward = output.heads["neighbours"].unbind(-2)
        terms = {
            "forward": cross_entropy(forward, batch["labels"]),
            "backward": cross_entropy(backward, batch["previous"]),
        }
        return Loss(terms, weights={"forward": 0.5, "backward": 0.5}, aux={"model": auxiliary(output)})
