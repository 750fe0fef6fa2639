"""T5's pre-training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from llmlab.registry import register
from llmlab.slots import Loss, Vocabulary

from ._loss import targets, token_loss


@register("objective", "span_corruption")
class SpanCorruption:
    """Span corruption (T5: Raffel et al. 2019, arXiv:1910.10683): a decoder fills in spans of the text.

    A share `density` of the seq_len tokens is taken out in spans of mean length `mean_span`. The source has a sentinel
    in place of each, then eos; the target has each sentinel followed by its span, then eos; the decoder sees the target
    shifted right, beginning with pad. source_ids (S,), ids and labels (T,): S and T follow from seq_len alone.
    """

    mask = "causal"
    heads = {"tokens": "lm"}
    # fmt: off
    special = (
        "pad", "eos", "sentinel_0", "sentinel_1", "sentinel_2", "sentinel_3", "sentinel_4", "sentinel_5",
        "sentinel_6", "sentinel_7", "sentinel_8", "sentinel_9", "sentinel_10", "sentinel_11", "sentinel_12",
        "sentinel_13", "sentinel_14", "sentinel_15", "sentinel_16", "sentinel_17", "sentinel_18", "sentinel_19",
        "sentinel_20", "sentinel_21", "sentinel_22", "sentinel_23", "sentinel_24", "sentinel_25", "sentinel_26",
        "sentinel_27", "sentinel_28", "sentinel_29", "sentinel_30", "sentinel_31", "sentinel_32", "sentinel_33",
        "sentinel_34", "sentinel_35", "sentinel_36", "sentinel_37", "sentinel_38", "sentinel_39", "sentinel_40",
        "sentinel_41", "sentinel_42", "sentinel_43", "sentinel_44", "sentinel_45", "sentinel_46", "sentinel_47",
        "sentinel_48", "sentinel_49", "sentinel_50", "sentinel_51", "sentinel_52", "sentinel_53", "sentinel_54",
        "sentinel_55", "sentinel_56", "sentinel_57", "sentinel_58", "sentinel_59", "sentinel_60", "sentinel_61",
        "sentinel_62", "sentinel_63", "sentinel_64", "sentinel_65", "sentinel_66", "sentinel_67", "sentinel_68",
        "sentinel_69", "sentinel_70", "sentinel_71", "sentinel_72", "sentinel_73", "sentinel_74", "sentinel_75",
        "sentinel_76", "sentinel_77", "sentinel_78", "sentinel_79", "sentinel_80", "sentinel_81", "sentinel_82",
        "sentinel_83", "sentinel_84", "sentinel_85", "sentinel_86", "sentinel_87", "sentinel_88", "sentinel_89",
        "sentinel_90", "sentinel_91", "sentinel_92", "sentinel_93", "sentinel_94", "sentinel_95", "sentinel_96",
        "sentinel_97", "sentinel_98", "sentinel_99",
    )
    # fmt: on
    topologies = ("encoder_decoder",)
    measures = {"nll": "nll"}
    fixed_counts = True

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        /,
        *,
        density: float = 0.15,  # share of tokens that are taken out
        mean_span: float = 3.0,  # mean length of what is taken out at once
    ):
        if not 0 < density < 1 or mean_span < 1:
            raise ValueError(
                "objective.density must be in (0, 1) and objective.mean_span at least 1, "
                f"but they are {density} and {mean_span}"
            )
        if seq_len < 2:
            raise ValueError(f"objective=span_corruption needs data.seq_len of at least 2, but it is {seq_len}")
        self.seq_len = seq_len
        self.noise = min(max(round(seq_len * density), 1), seq_len - 1)
        self.spans = min(max(round(self.noise / mean_span), 1), self.noise, seq_len - self.noise)
        self.sentinels = np.array(
            [vocabulary.special[n] for n in self.special if n.startswith("sentinel")], dtype=np.int64
        )
        if self.spans > len(self.sentinels):
            raise ValueError(
                f"data.seq_len={seq_len} with objective.density={density} makes {self.spans} spans, but there are "
                f"{len(self.sentinels)} sentinels; lower data.seq_len or raise objective.mean_span"
            )
        self.eos, self.pad = vocabulary.special["eos"], vocabulary.special["pad"]

    def prepare(self, sample: dict[str, Any], rng: Any) -> dict[str, Any]:
        tokens = np.asarray(sample["tokens"], dtype=np.int64)[: self.seq_len]
        kept = segments(self.seq_len - self.noise, self.spans, rng)
        taken = segments(self.noise, self.spans, rng)
        source, target, start = [], [], 0
        for sentinel, n_kept, n_taken in zip(self.sentinels, kept, taken, strict=False):
            middle, end = start + n_kept, start + n_kept + n_taken
            source += [tokens[start:middle], [sentinel]]
            target += [[sentinel], tokens[middle:end]]
            start = end
        labels = np.concatenate([*target, [self.eos]])
        return {
            "source_ids": np.concatenate([*source, [self.eos]]),
            "ids": np.concatenate([[self.pad], labels[:-1]]),
            "labels": labels,
        }

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        return targets(prepared)

    def loss(self, model: Any, batch: Mapping[str, Tensor]) -> Loss:
        output = model(batch, heads={"tokens": None})
        return token_loss(output, output.heads["tokens"], batch["labels"])


def segments(total: int, n: int, rng: Any) -> np.ndarray:
    """Lengths of n segments of at least 1 that make `total`: every way equally likely."""
    cuts = np.sort(rng.choice(total - 1, n - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))
