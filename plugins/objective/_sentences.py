"""Sentences of a text of ids, and the loss of a decoder that writes a text from a noised source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from llmlab.slots import LanguageModel, Loss, Vocabulary

from ._loss import IGNORED, token_loss

Array = np.ndarray
ENDS = (".", "!", "?", "…", "。", "！", "？")
CLOSING = " \t\r\n\"'”’»)]}"  # may stand behind the full stop in one token


def sentence_ends(vocabulary: Vocabulary, option: str) -> Array:
    """Ids that end a sentence: those whose text ends with a full stop or its like, and eos. ValueError if only eos does."""
    special = set(vocabulary.special.values())
    ids = [i for i in range(vocabulary.size) if vocabulary.text(i).rstrip(CLOSING).endswith(ENDS) and i not in special]
    if not ids:
        raise ValueError(f"{option} needs sentences, but no token of the tokenizer ends in a full stop, ! or ?")
    return np.array([*ids, vocabulary.special["eos"]], dtype=np.int64)


def sentences(tokens: Array, ends: Array) -> list[Array]:
    """The sentences of a text, in order; what is behind the last end is one too."""
    is_end = np.isin(tokens, ends)
    # Of several ends in a row ("?!", or a full stop and the end of the document) the last one counts.
    cuts = np.flatnonzero(is_end[:-1] & ~is_end[1:]) + 1
    return np.split(tokens, cuts)


def as_pair(source: Sequence[Array], target: Sequence[Array], eos: int, pad: int) -> dict[str, Array]:
    """What an encoder-decoder reads and is to write, each with eos at its end. source_ids (S,), ids and labels (T,)."""
    labels = np.concatenate([*target, [eos]])
    # BART's own decoder begins with eos; here each begins with pad, as in T5, which `generate` and `export` go by.
    return {
        "source_ids": np.concatenate([*source, [eos]]),
        "ids": np.concatenate([[pad], labels[:-1]]),
        "labels": labels,
    }


def decoder_loss(model: LanguageModel, batch: Mapping[str, Tensor]) -> Loss:
    """Cross-entropy of the decoder's targets."""
    where = batch["labels"] != IGNORED
    output = model(batch, heads={"tokens": where})
    return token_loss(output, output.heads["tokens"], batch["labels"][where])
