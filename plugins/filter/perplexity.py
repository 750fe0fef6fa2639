"""A filter by the perplexity of documents under a small model of example text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmlab.ngram import KneserNey
from llmlab.registry import register
from llmlab_plugins.filter._examples import documents

BYTES = 256
HIGHEST = 7  # order of n-grams of bytes that fit into 64 bits
READ = 20_000  # bytes of a document that are read, a microsecond each


@register("filter", "perplexity")
class Perplexity:
    """Drops documents that a model of example text finds unlikely, or too likely (Wenzek et al. 2020, arXiv:1911.00359).

    The paper's model is one of 5-grams of subwords with Kneser-Ney smoothing, of Wikipedia; this one is the same of bytes,
    which need no tokenizer, and of your own examples. It is made in each process when the first document is judged. Limits are
    in bits per byte, the logarithm to the base 2 of a perplexity by byte: half of Python's help texts have 1.9 under a model of
    the other half, and letters in a random order have 6.

    examples: file of text as it should be: .jsonl with objects that have a "text", or a text with a document on each line
    most: a document of more bits per byte is dropped; None: no limit
    least: a document of fewer bits per byte is dropped; None: no limit
    order: length of the n-grams in bytes
    """

    files = ("examples",)

    def __init__(
        self, *, examples: str | None = None, most: float | None = None, least: float | None = None, order: int = 5
    ):
        if examples is None:
            raise ValueError("give it text to learn from, examples=FILE")
        if most is None and least is None:
            raise ValueError("give it a limit in bits per byte, most=BITS or least=BITS")
        if most is not None and least is not None and least > most:
            raise ValueError(f"least={least:g} is more than most={most:g}: none would be kept")
        if not 1 <= order <= HIGHEST:
            raise ValueError(f"order must be 1 to {HIGHEST} bytes, but is {order}")
        self.most, self.least, self.order = most, least, order
        self.examples = documents("examples", examples)
        self._model: KneserNey | None = None

    def measure(self, texts: Sequence[str]) -> list[float]:
        """Bits per byte of each text."""
        if self._model is None:
            self._model = KneserNey(_bytes("\n".join(self.examples)), BYTES, self.order)
        found = []
        for text in texts:
            read = _bytes(text)[:READ]
            found.append(self._model.bits(read) / max(1, len(read)))
        return found

    def reason(self, value: float) -> str | None:
        if self.most is not None and value > self.most:
            return f"more than {self.most:g} bits per byte"
        if self.least is not None and value < self.least:
            return f"fewer than {self.least:g} bits per byte"
        return None


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int64)
