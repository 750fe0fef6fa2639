"""T5's pre-training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from torch import Tensor

from llmlab.registry import register
from llmlab.slots import LanguageModel, Loss, Vocabulary

from ._loss import targets, token_loss


@register("objective", "span_corruption")
class SpanCorruption:
    """Span corruption (T5: Raffel et al. 2019, arXiv:1910.10683): a decoder fills in spans of the text.

    A share `density` of the seq_len tokens is taken out in spans of mean length `mean_span`. The source has a sentinel
    in place of each, then eos; the target has each sentinel followed by its span, then eos; the decoder sees the target
    shifted right, beginning with pad. source_ids (S,), ids and labels (T,): S and T follow from seq_len alone.

    With a `mode` the source begins with its token, and with `at_end` the one span is the text's end (UL2's R-, S- and
    X-denoisers: Tay et al. 2022, arXiv:2205.05131, section 3.1.2; objective=ul2 mixes them).
    """

    mask = "causal"
    heads = {"tokens": "lm"}
    special = ("pad", "eos")
    sentinels = 100  # as in T5's own vocabulary
    when = {
        "mode=r": {"special": ("mode_r",)},
        "mode=s": {"special": ("mode_s",)},
        "mode=x": {"special": ("mode_x",)},
    }
    topologies = ("encoder_decoder",)
    measures = {"nll": "nll"}
    restores = "spans"
    telling = (
        {"density": 0.5},
        {"density": 0.001},
        {"density": 0.99},
        {"mean_span": 1.0},
        {"mean_span": 2.0},
        {"mean_span": 30.0},
        {"density": 0.7, "mean_span": 1.0},
        {"density": 0.19, "mean_span": 2.5},
        {"density": 0.25, "at_end": True, "mode": "s"},
    )
    fixed_counts = True

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        /,
        *,
        density: float = 0.15,  # share of tokens that are taken out
        mean_span: float = 3.0,  # mean length of what is taken out at once
        at_end: bool = False,  # all that is taken out is the end of the text
        mode: Literal["none", "r", "s", "x"] = "none",  # whose token the source begins with
    ):
        if not 0 < density < 1 or mean_span < 1:
            raise ValueError(
                "objective.density must be in (0, 1) and objective.mean_span at least 1, "
                f"but they are {density} and {mean_span}"
            )
        if seq_len < 2:
            raise ValueError(f"objective=span_corruption needs data.seq_len of at least 2, but it is {seq_len}")
        self.seq_len = seq_len
        # Noise is rounded and bounded as in T5's random_spans_noise_mask, which leaves neither noise nor text empty.
        self.noise = min(max(round(seq_len * density), 1), seq_len - 1)
        self.spans = min(max(round(self.noise / mean_span), 1), self.noise, seq_len - self.noise)
        if at_end:
            self.spans = 1
        self.mode = [] if mode == "none" else [np.array([vocabulary.special[f"mode_{mode}"]], dtype=np.int64)]
        ids = [vocabulary.special[f"sentinel_{i}"] for i in range(self.sentinels)]
        self.sentinel_ids = np.array(ids, dtype=np.int64)
        if self.spans > self.sentinels:
            raise ValueError(
                f"data.seq_len={seq_len} with objective.density={density} makes {self.spans} spans, but there are "
                f"{self.sentinels} sentinels; lower data.seq_len or raise objective.mean_span"
            )
        self.eos, self.pad = vocabulary.special["eos"], vocabulary.special["pad"]

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        tokens = np.asarray(sample["tokens"], dtype=np.int64)[: self.seq_len]
        kept = segments(self.seq_len - self.noise, self.spans, rng)
        taken = segments(self.noise, self.spans, rng)
        source, target, start = [], [], 0
        # Not strict: there are 100 sentinels, of which a text takes the first.
        for sentinel, n_kept, n_taken in zip(self.sentinel_ids, kept, taken, strict=False):
            middle, end = start + n_kept, start + n_kept + n_taken
            # T5 interleaves them in this order: a text begins with what is kept and ends with what is taken out.
            source += [tokens[start:middle], [sentinel]]
            target += [[sentinel], tokens[middle:end]]
            start = end
        labels = np.concatenate([*target, [self.eos]])
        return {
            "source_ids": np.concatenate([*self.mode, *source, [self.eos]]),
            # T5 has no token for the beginning: its decoder_start_token_id is padding.
            "ids": np.concatenate([[self.pad], labels[:-1]]),
            "labels": labels,
        }

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        return targets(prepared)

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor]) -> Loss:
        output = model(batch, heads={"tokens": None})
        return token_loss(output, output.heads["tokens"], batch["labels"])


def segments(total: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """Lengths of n segments of at least 1 that make `total`: every way equally likely."""
    # n - 1 different cuts in total - 1 gaps: each set of lengths has exactly one such choice.
    cuts = np.sort(rng.choice(total - 1, n - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))
