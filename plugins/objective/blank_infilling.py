"""GLM's pre-training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from torch import Tensor

from llmlab.registry import register
from llmlab.slots import LanguageModel, Loss, Vocabulary

from ._loss import IGNORED, targets
from ._sentences import decoder_loss, sentence_ends, sentences

Array = np.ndarray
MASKS = {"token": "mask", "sentence": "smask", "document": "gmask", "prefix": "gmask"}  # GLM's [MASK], [sMASK], [gMASK]


@register("objective", "blank_infilling")
class BlankInfilling:
    """Autoregressive blank infilling (GLM: Du et al. 2022, arXiv:2103.10360, section 2.1): spans are filled in one after the
    other, each token of them seeing all of the rest of the text.

    A window of seq_len ids is [text with one mask token for each span; spans in random order, each behind start], of which
    the first `prefix_len` () see each other and the others what is before them; labels are a span's tokens, then end. The
    text is the first seq_len - 2 n tokens of the window, n the number of spans. ids and labels (T,); positions (2, T): the
    place in the text, which is the mask's for a span, and the place in the span, counted from 1 at start and 0 outside; or
    (T,), the first of the two alone (GLM-130B: Zeng et al. 2022, arXiv:2210.02414).

    Spans of tokens have lengths by a Poisson distribution without 0 and are drawn until they are `rate` of the text, with a
    token between any two. Sentences are drawn until they are as much. Of a document one span is taken, with a length uniform
    from half of the text to all of it; behind a prefix all the rest, of any length (GLM-130B).
    """

    mask = "prefix"
    heads = {"tokens": "lm"}
    special = ("start", "end")
    when = {
        "variant=token": {"special": ("mask",)},
        "variant=sentence": {"special": ("smask", "eos")},
        "variant=document": {"special": ("gmask",)},
        "variant=prefix": {"special": ("gmask",)},
        "pairs": {"counts": 2},
    }
    topologies = ("decoder", "encoder")
    measures = {"nll": "nll"}
    gives = ("prefix_len",)
    restores = "blanks"
    telling = (
        {"rate": 0.5},
        {"rate": 0.5, "mean_span": 1.0},
        {"rate": 0.95},
        {"variant": "sentence", "rate": 0.4},
    )

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        /,
        *,
        variant: Literal["token", "sentence", "document", "prefix"] = "token",  # what is a span
        rate: float = 0.15,  # share of the text that is in spans of tokens or sentences, at least
        mean_span: float = 3.0,  # lambda of the lengths of spans of tokens
        pairs: bool = False,  # positions are pairs, which position=glm_2d and rope_2d take
    ):
        if not 0 < rate < 1 or mean_span <= 0:
            raise ValueError(
                f"objective.rate must be in (0, 1) and objective.mean_span above 0, but they are {rate} and {mean_span}"
            )
        if seq_len < 4:
            raise ValueError(f"objective=blank_infilling needs data.seq_len of at least 4, but it is {seq_len}")
        self.seq_len, self.variant, self.rate, self.mean_span, self.pairs = seq_len, variant, rate, mean_span, pairs
        self.mask_id = vocabulary.special[MASKS[variant]]
        self.start, self.end = vocabulary.special["start"], vocabulary.special["end"]
        self.ends = sentence_ends(vocabulary, f"objective.variant={variant}") if variant == "sentence" else None

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        tokens = np.asarray(sample["tokens"], dtype=np.int64)[: self.seq_len]
        spans = self._spans(tokens, rng)
        tokens = tokens[: self.seq_len - 2 * len(spans)]
        given = np.zeros(len(tokens), bool) if sample.get("given") is None else sample["given"][: len(tokens)]
        text: list[Array] = []
        at, read = 0, 0
        places = []  # of the masks in the text that is left
        for begin, end in spans:
            text += [tokens[at:begin], np.array([self.mask_id])]
            read += begin - at + 1
            places.append(read - 1)
            at = end
        text.append(tokens[at:])
        prefix = read + len(tokens) - at
        ids, labels, place, inside = [*text], [np.full(prefix, IGNORED)], [np.arange(prefix)], [np.zeros(prefix, int)]
        for i in rng.permutation(len(spans)):
            begin, end = spans[i]
            span, n = tokens[begin:end], end - begin + 1
            ids += [np.array([self.start]), span]
            labels.append(np.append(np.where(given[begin:end], IGNORED, span), self.end))
            # GLM-130B counts on behind [gMASK], which its text ends with.
            goes_on = self.variant == "prefix" and not self.pairs
            place.append(np.arange(prefix, prefix + n) if goes_on else np.full(n, places[i]))
            inside.append(np.arange(1, n + 1))
        positions = [np.concatenate(place), np.concatenate(inside)]
        return {
            "ids": np.concatenate(ids),
            "labels": np.concatenate(labels),
            "positions": np.stack(positions) if self.pairs else positions[0],
            "prefix_len": np.int64(prefix),
        }

    def _spans(self, tokens: Array, rng: np.random.Generator) -> list[tuple[int, int]]:
        """(begin, end) of each span, in the order of the text."""
        n = self.seq_len - 2  # of the text where there is one span
        if self.variant == "prefix":
            return [(n - int(rng.integers(n)) - 1, n)]
        if self.variant == "document":
            length = int(rng.integers(-(-n // 2), n + 1))
            begin = int(rng.integers(n - length + 1))
            return [(begin, begin + length)]
        return self._sentences(tokens, rng) if self.variant == "sentence" else self._tokens(rng)

    def _tokens(self, rng: np.random.Generator) -> list[tuple[int, int]]:
        lengths: list[int] = []
        while sum(lengths) < self.rate * (self.seq_len - 2 * len(lengths)):
            # As many tokens are left for the text as it has spans, of which each ends before one or at the end.
            room = self.seq_len - 3 * (len(lengths) + 1) + 1 - sum(lengths)
            if room < 1:
                break
            length = 0
            while length == 0:
                length = int(rng.poisson(self.mean_span))
            lengths.append(min(length, room))
        kept = self.seq_len - 2 * len(lengths) - sum(lengths)
        # In any order, each in another gap between the tokens that are kept.
        lengths = rng.permutation(lengths).tolist()
        gaps = np.sort(rng.choice(kept + 1, len(lengths), replace=False))
        before = np.cumsum([0, *lengths])
        return [(int(g + b), int(g + b + n)) for g, b, n in zip(gaps, before, lengths, strict=False)]

    def _sentences(self, tokens: Array, rng: np.random.Generator) -> list[tuple[int, int]]:
        assert self.ends is not None
        # One order for all numbers of spans: with each the text is two tokens shorter.
        order = rng.permutation(len(sentences(tokens, self.ends)))
        n, taken = 0, 0
        while True:
            n += 1
            text = tokens[: self.seq_len - 2 * n]
            bounds = np.cumsum([0, *map(len, sentences(text, self.ends))])
            chosen = [i for i in order if i < len(bounds) - 1][:n]
            taken = sum(bounds[i + 1] - bounds[i] for i in chosen)
            if taken >= self.rate * len(text) or n + 1 > len(sentences(tokens[: self.seq_len - 2 * n - 2], self.ends)):
                return [(int(bounds[i]), int(bounds[i + 1])) for i in sorted(chosen)]

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        return targets(prepared)

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor]) -> Loss:
        return decoder_loss(model, batch)
