"""A prepared corpus: two streams of tokens or two sets of records on disk, and what is known of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmlab import ngram
from llmlab.data import cache, pairs, words
from llmlab.data.pairs import Pairs
from llmlab.data.records import Records
from llmlab.data.tokenizer import Tokenizer
from llmlab.data.windows import Stream
from llmlab.ranks import rank_zero_info

if TYPE_CHECKING:
    from llmlab.slots import Vocabulary

PARTS = ("train", "validation")
COUNTED_AT_ONCE = 1 << 22
NGRAM_TOKENS = 20_000_000  # training tokens that the n-gram models count at most


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus, memory-mapped.

    `manifest` has what is known without opening anything else: fingerprint (sha256 over the documents in order,
    whatever the split and the tokenizer), documents, bytes and tokens by part, the vocabulary, how it was split.
    """

    folder: Path
    manifest: dict[str, Any]
    train: Stream | Records
    validation: Stream | Records

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    @property
    def tokens(self) -> int:
        """Tokens of both parts together."""
        return len(self.train) + len(self.validation)

    @property
    def validation_bytes(self) -> int:
        """Bytes of the held-out text in UTF-8."""
        return self.manifest["bytes"]["validation"]

    @property
    def vocabulary(self) -> Vocabulary:
        # Deferred: slots imports torch, which takes 1.4 s, and a manifest is read without it.
        from llmlab.slots import Vocabulary

        # The tokenizer is opened by objectives that ask for words or texts alone.
        return Vocabulary(
            self.manifest["vocab_size"],
            self.manifest["special"],
            read_words=lambda: words.of(self.tokenizer),
            counts=self.counts,
            pairs=self.pairs,
            text=lambda i: self.tokenizer.decode([i]),
        )

    def counts(self) -> np.ndarray:
        """(vocabulary,) int64: how often each id is in the training part."""
        size, tokens = self.manifest["vocab_size"], self.train.tokens
        counts = np.zeros(size, np.int64)
        # In pieces: np.bincount makes int64 of what it counts, four times the text.
        for at in range(0, len(tokens), COUNTED_AT_ONCE):
            counts += np.bincount(tokens[at : at + COUNTED_AT_ONCE], minlength=size)
        return counts

    def pairs(self, window: int) -> Pairs:
        """How often two tokens are near each other in the training part; counted once, then kept."""
        special = list(self.manifest["special"].values())
        return pairs.kept(self.folder, self.train.tokens, self.manifest["vocab_size"], window, special)

    @property
    def is_records(self) -> bool:
        """True if it holds records and not text."""
        return isinstance(self.train, Records)

    @property
    def labels(self) -> list[str] | None:
        """The classes of labelled records, in the order of their numbers."""
        return self.manifest.get("labels")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.folder)

    def ngram(self, orders: Sequence[int] = (2, 3)) -> dict[int, float]:
        """Bits per byte of the validation part under Kneser-Ney models of the training part; computed once, then kept.

        They count the first 20 million training tokens at most, and that is said.
        """
        file = self.folder / "ngram.json"
        known = cache.read_checked(file) or {}
        missing = [n for n in orders if str(n) not in known]
        if missing:
            if len(self.train) > NGRAM_TOKENS:
                rank_zero_info(
                    f"the n-gram models count the first {NGRAM_TOKENS:,} of {len(self.train):,} training tokens"
                )
            # The map's slice: only its pages are read.
            counted, tokens = self.train.tokens[:NGRAM_TOKENS], self.validation.tokens
            found = ngram.kneser_ney(counted, tokens, self.validation_bytes, self.vocabulary.size, missing)
            known |= {str(n): bits for n, bits in found.items()}
            # Written if possible: a shared cache may be read-only, and the numbers can be counted again.
            cache.keep(file, known)
        return {n: known[str(n)] for n in orders}
