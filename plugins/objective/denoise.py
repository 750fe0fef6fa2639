"""BART's pre-training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from llmlab.registry import register
from llmlab.slots import LanguageModel, Loss, Vocabulary

from ._loss import IGNORED, targets
from ._sentences import as_pair, decoder_loss, sentence_ends, sentences

Array = np.ndarray


@register("objective", "denoise")
class Denoising:
    """Denoising of a text, all of which the decoder writes (BART: Lewis et al. 2020, arXiv:1910.13461, section 2.2).

    The noises, each on what the one before has left: `permuted` sentences change places, tokens are `deleted` or `masked`,
    spans are `infilled` with one mask token each, and the text begins elsewhere (`rotated`). By default those of the released
    models, sentence permutation and text infilling. source_ids (S,), S at most seq_len; ids and labels (seq_len,): the first
    seq_len - 1 tokens, then eos; the decoder sees the labels shifted right, beginning with pad.
    """

    mask = "causal"
    heads = {"tokens": "lm"}
    special = ("pad", "eos", "mask")
    topologies = ("encoder_decoder",)
    measures = {"nll": "nll"}
    collate = "pad"
    restores = "noised"
    telling = (
        {"permuted": 0.0, "mean_span": 1.5},
        {"permuted": 0.0, "infilled": 0.6, "mean_span": 1.0},
        {"permuted": 0.5, "infilled": 0.0},
        {"permuted": 0.0, "infilled": 0.0, "masked": 0.4},
        {"permuted": 0.0, "infilled": 0.0, "deleted": 0.3},
        {"permuted": 0.0, "infilled": 0.0, "rotated": 0.6},
        {"permuted": 0.5, "infilled": 0.2, "masked": 0.1, "rotated": 0.5},
        {"permuted": 0.0, "infilled": 0.4, "deleted": 0.5},
    )
    fixed_counts = True

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        /,
        *,
        infilled: float = 0.3,  # share of tokens that are in spans of which one mask token is left
        mean_span: float = 3.0,  # mean length of such a span (Poisson); of an empty one the mask token is put in
        permuted: float = 1.0,  # share of sentences that change places among each other
        masked: float = 0.0,  # probability that a token is shown as the mask token
        deleted: float = 0.0,  # probability that a token is left out
        rotated: float = 0.0,  # probability that a text begins with a token drawn from all, and ends before it
    ):
        shares = {"infilled": infilled, "permuted": permuted, "masked": masked, "deleted": deleted, "rotated": rotated}
        if wrong := [f"objective.{name}={share}" for name, share in shares.items() if not 0 <= share <= 1]:
            raise ValueError(f"{wrong[0]} must be in [0, 1]")
        if not any(shares.values()):
            raise ValueError(f"one of {', '.join(f'objective.{name}' for name in shares)} must be above 0")
        if mean_span < 1:
            raise ValueError(f"objective.mean_span must be at least 1, but is {mean_span}")
        if seq_len < 2:
            raise ValueError(f"objective=denoise needs data.seq_len of at least 2, but it is {seq_len}")
        self.length = seq_len - 1
        self.infilled, self.mean_span, self.permuted = infilled, mean_span, permuted
        self.masked, self.deleted, self.rotated = masked, deleted, rotated
        self.mask_id, self.eos, self.pad = (vocabulary.special[name] for name in ("mask", "eos", "pad"))
        self.ends = sentence_ends(vocabulary, f"objective.permuted={permuted}") if permuted else None
        # The last of the targets is eos, which each source shows.
        self.shown = (1 - masked) * (1 - deleted) * (1 - infilled)

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        tokens = np.asarray(sample["tokens"], dtype=np.int64)[: self.length]
        source = tokens
        if self.ends is not None:
            source = np.concatenate(permuted(sentences(tokens, self.ends), self.permuted, rng))
        source = source[rng.random(len(source)) >= self.deleted]
        source = np.where(rng.random(len(source)) < self.masked, self.mask_id, source)
        source = infilled(source, self.infilled, self.mean_span, self.mask_id, rng)
        if rng.random() < self.rotated:
            source = np.roll(source, -rng.integers(max(len(source), 1)))
        prepared = as_pair([source], [tokens], self.eos, self.pad)
        if sample.get("given") is not None:
            prepared["labels"][:-1][sample["given"][: self.length]] = IGNORED
        return prepared

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        return targets(prepared)

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor]) -> Loss:
        return decoder_loss(model, batch)


def permuted(whole: list[Array], share: float, rng: np.random.Generator) -> list[Array]:
    """A share of the sentences, rounded up, in each other's places: any order of them is equally likely."""
    # Rounded up as in fairseq's denoising_dataset.
    chosen = rng.permutation(len(whole))[: int(np.ceil(len(whole) * share))]
    order = np.arange(len(whole))
    order[np.sort(chosen)] = chosen
    return [whole[i] for i in order]


def infilled(tokens: Array, share: float, mean: float, mask_id: int, rng: np.random.Generator) -> Array:
    """A text of which a share of the tokens, rounded, is in spans of which each has become one mask token.

    Lengths are drawn until the spans have so many tokens, the last is cut to fit. A span of no token adds its mask. Any order
    of spans and other tokens is equally likely. fairseq adds a mask for every token of the share that begins no span, most
    of them then; the paper for the spans of length 0 alone, 5 % of all at a mean of 3, as here.
    """
    n_taken = round(len(tokens) * share)
    lengths: list[int] = []
    taken = 0
    while taken < n_taken:
        lengths.append(min(int(rng.poisson(mean)), n_taken - taken))
        taken += lengths[-1]
    # No more spans than tokens in them: the source is never longer than the text.
    some, none = [n for n in lengths if n], [n for n in lengths if not n]
    spans = rng.permutation([*some, *none[: n_taken - len(some)]]).astype(np.int64)
    widths = np.ones(len(tokens) - n_taken + len(spans), dtype=np.int64)
    is_span = np.zeros(len(widths), dtype=bool)
    is_span[rng.choice(len(widths), len(spans), replace=False)] = True
    widths[is_span] = spans
    begins = np.cumsum(widths) - widths
    source = np.full(len(widths), mask_id, dtype=np.int64)
    source[~is_span] = tokens[begins[~is_span]]
    return source
