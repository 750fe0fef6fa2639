"""Texts that a model writes for records that ask for one, compared with what they should have been."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from llmlab.decoding.answers import answers
from llmlab.decoding.generate import fits_padding
from llmlab.decoding.sampling import Sampling
from llmlab.errors import UserError
from llmlab.ranks import rank_zero_info

if TYPE_CHECKING:
    from llmlab.data.samples import Samples
    from llmlab.data.tokenizer import Tokenizer
    from llmlab.model.model import Model
    from llmlab.slots import Objective, Vocabulary, Writing

LONGER = 8  # tokens that a text may have beyond twice the longest that is asked for
AT_ONCE = 32


def asked(objective: Objective, samples: Samples, n: int) -> list[Writing]:
    """What the objective would have a model write for the first n samples; [] where it asks for no text."""
    if not hasattr(objective, "writing"):
        return []
    # Without the run's seed, as a validation prepares its samples.
    prepared = (objective.prepare(samples[i], np.random.default_rng(i)) for i in range(min(n, len(samples))))
    return [objective.writing(p) for p in prepared]


def written(
    model: Model, wanted: Sequence[Writing], tokenizer: Tokenizer, vocabulary: Vocabulary, at_once: int = AT_ONCE
) -> list[str]:
    """The most likely token each time, until eos or twice as many as the longest target has."""
    most = 2 * max(len(w.target) for w in wanted) + LONGER
    texts: dict[int, str] = {}
    # By length, so that a batch has little padding, and none where it would change what is written.
    order = sorted(range(len(wanted)), key=lambda i: len(wanted[i].prompt))
    alike = fits_padding(model, len(wanted[order[-1]].prompt) + most)
    while order:
        length = len(wanted[order[0]].prompt)
        some = [i for i in order[:at_once] if alike or len(wanted[i].prompt) == length]
        order = order[len(some) :]
        found = answers(
            model,
            [wanted[i].prompt for i in some],
            max_new=most,
            sampling=Sampling(temperature=0.0),
            seeds=[0] * len(some),
            stop=vocabulary.special.get("eos"),
            start=wanted[some[0]].start,
            vocabulary=vocabulary.size,
        )
        texts |= {i: tokenizer.decode(answer.ids).strip() for i, answer in zip(some, found, strict=True)}
    return [texts[i] for i in range(len(wanted))]


def scores(
    model: Model, objective: Objective, samples: Samples, tokenizer: Tokenizer, vocabulary: Vocabulary, n: int
) -> dict[str, float]:
    """ "exact_match", the share of the first n samples whose text is right to the character, and "bleu" (sacrebleu's, 0 to 100)
    where that is installed; {} where the objective asks for no text, or the model can write none."""
    if not (wanted := asked(objective, samples, n)):
        return {}
    try:
        texts = written(model, wanted, tokenizer, vocabulary)
    except UserError as e:
        rank_zero_info(f"no text is generated and compared: {e}")
        return {}
    targets = [tokenizer.decode(w.target).strip() for w in wanted]
    found = {"exact_match": sum(map(str.__eq__, texts, targets)) / len(targets)}
    if (value := bleu(texts, targets)) is None:
        rank_zero_info("BLEU is not measured, as sacrebleu is not installed: pip install sacrebleu")
        return found
    return {**found, "bleu": value}


def bleu(texts: Sequence[str], targets: Sequence[str]) -> float | None:
    """Corpus BLEU (Papineni et al. 2002, P02-1040) of texts with a target each, by sacrebleu; None where it is missing."""
    try:
        from sacrebleu.metrics import BLEU  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        return None
    assert len(texts) == len(targets)
    # References go in by their number, a list of all first ones: given a list for each text instead, sacrebleu 2.6 scores
    # the first text alone, without a word.
    return float(BLEU().corpus_score(list(texts), [list(targets)]).score)
