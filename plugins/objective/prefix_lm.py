"""Language modelling behind a prefix that is seen both ways."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, floor
from typing import Any

import numpy as np
from torch import Tensor

from llmlab.registry import register
from llmlab.slots import LanguageModel, Loss, Vocabulary

from ._loss import IGNORED, targets, token_loss


@register("objective", "prefix_lm")
class PrefixLM:
    """Prefix language modelling (T5: Raffel et al. 2019, arXiv:1910.10683, section 3.2.3; Liu et al. 2018, arXiv:1801.10198;
    as UniLM's sequence-to-sequence LM: Dong et al. 2019, arXiv:1905.03197).

    The first `prefix_len` () tokens of a window see each other, those behind them what came before; every token behind the
    prefix is predicted. Its length is drawn anew for each sample: every number of tokens between the shares `shortest` and
    `longest` of the window is equally likely, but for 0. ids and labels (T,), labels shifted by one.
    """

    mask = "prefix"
    heads = {"tokens": "lm"}
    special = ()
    topologies = ("decoder", "encoder")
    measures = {"nll": "nll"}
    gives = ("prefix_len",)
    restores = "continued"
    telling = ({"shortest": 0.5}, {"longest": 0.3}, {"shortest": 0.25, "longest": 0.25}, {"longest": 0.0})
    fixed_counts = False

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        /,
        *,
        shortest: float = 0.0,  # share of the window that the shortest prefix has
        longest: float = 1.0,  # and the longest
    ):
        if not 0 <= shortest <= longest <= 1:
            raise ValueError(
                "objective.shortest and objective.longest must be shares of a window, 0 <= shortest <= longest <= 1, "
                f"but they are {shortest} and {longest}"
            )
        self.shortest, self.longest = shortest, longest

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        tokens = np.asarray(sample["tokens"], dtype=np.int64)
        n = len(tokens) - 1
        # At least one token, as T5's split_tokens has it; behind a whole window comes the token that the next begins with.
        least = max(1, ceil(n * self.shortest))
        prefix = int(rng.integers(least, max(least, floor(n * self.longest)) + 1))
        labels = tokens[1:].copy()
        # The last token of the prefix predicts the first behind it; what others predict is in sight.
        labels[: prefix - 1] = IGNORED
        if sample.get("given") is not None:
            labels[sample["given"][1:]] = IGNORED
        prepared = {"ids": tokens[:-1], "labels": labels, "prefix_len": np.int64(prefix)}
        if sample.get("documents") is not None:
            prepared["documents"] = np.asarray(sample["documents"], dtype=np.int64)[:-1]
        return prepared

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        return targets(prepared)

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor]) -> Loss:
        where = batch["labels"] != IGNORED
        output = model(batch, heads={"tokens": where})
        return token_loss(output, output.heads["tokens"], batch["labels"][where])
