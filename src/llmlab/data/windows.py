"""A stream of tokens with its documents, and fixed windows over it."""

from __future__ import annotations

from pathlib import Path

import numpy as np


class Stream:
    """Tokens one after the other, memory-mapped, and where each document begins.

    `tokens` (n,) uint16 or uint32; `starts` (documents,) int64, rising, the first is 0. The end-of-text token belongs
    to the document that it ends. `sizes` (n,) unsigned: the bytes of text that each token accounts for, which over a
    document add up to its length; None of text that is trained on, and where the tokenizer does not tell.
    """

    def __init__(self, tokens: np.ndarray, starts: np.ndarray, sizes: np.ndarray | None = None):
        self.tokens = tokens
        self.starts = starts
        self.sizes = sizes

    @classmethod
    def open(cls, tokens: Path, starts: Path, sizes: Path) -> Stream:
        known = np.load(sizes, mmap_mode="r") if sizes.exists() else None
        # Starts are read whole, as every window searches them.
        return cls(np.load(tokens, mmap_mode="r"), np.load(starts), known)

    def __len__(self) -> int:
        return len(self.tokens)

    def after(self, seq_len: int, lead: int = 1) -> Stream:
        """The tokens that windows of `seq_len` leave at the end, from the token that the last of them shares, or with as many
        as the lead has.
        """
        # As `Windows` counts: a window has seq_len + 1 tokens, the first of which, or the lead, are no targets.
        stride = seq_len + 1 - lead
        begin = max(0, (len(self) - lead) // stride) * stride
        starts = np.concatenate(([0], self.starts[self.starts > begin] - begin))
        return Stream(self.tokens[begin:], starts, None if self.sizes is None else self.sizes[begin:])

    def documents(self, begin: int, end: int) -> np.ndarray:
        """The document of each token in [begin, end): (end - begin,) int64, counted over the whole stream."""
        # side="right" minus 1: the document whose first token is at or before the place.
        first, last = np.searchsorted(self.starts, (begin, end - 1), side="right") - 1
        lengths = np.diff(np.concatenate(([begin], self.starts[first + 1 : last + 1], [end])))
        return np.repeat(np.arange(first, last + 1, dtype=np.int64), lengths)


class Windows:
    """Sample i: tokens [i * seq_len, (i + 1) * seq_len] of a stream, both ends included, as int64.

    Neighbours share one token, so that each token but the first is once the target of a next-token objective. What is
    left at the end of the stream and does not fill a window is in none. "documents" are there if asked for
    (`data.separate_documents`): a model keeps them apart where it is given them. "sizes" are those of the stream, if it
    has them.

    lead: ids with which each window begins, as if its text were one of its own, in place of the token that it shares; the
    stream begins with them too. given: ids that are no text wherever they stand, so that none is to be a target; a sample then
    has "given", True where one is.
    """

    pad = 0  # windows are of one length

    def __init__(
        self,
        stream: Stream,
        seq_len: int,
        documents: bool = False,
        lead: tuple[int, ...] = (),
        given: tuple[int, ...] = (),
    ):
        if seq_len < max(1, len(lead)):
            raise ValueError(f"data.seq_len must be at least {max(1, len(lead))}, but is {seq_len}")
        self.stream = stream
        self.seq_len = seq_len
        self.documents = documents
        self.lead, self.given = lead, given
        self.shared = len(lead) or 1  # tokens at its beginning that are no targets
        self.stride = seq_len + 1 - self.shared

    @property
    def tokens_per_sample(self) -> float:
        return float(self.seq_len)

    def spread(self, n: int) -> list[int]:
        """The numbers of n windows from all over the text."""
        return [i * len(self) // n for i in range(n)]

    def __len__(self) -> int:
        return max(0, (len(self.stream) - self.shared) // self.stride)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        if not 0 <= i < len(self):
            raise IndexError(f"window {i} of {len(self)}")
        begin = i * self.stride
        end = begin + self.seq_len + 1
        # A copy: the map is read-only, and F.embedding takes int32 and int64 alone.
        sample: dict[str, np.ndarray] = {"tokens": np.array(self.stream.tokens[begin:end], dtype=np.int64)}
        # In place, which is why the tokens are a copy.
        sample["tokens"][: len(self.lead)] = self.lead
        if self.documents:
            sample["documents"] = self.stream.documents(begin, end)
            # The lead belongs to the document that it opens, not to the one whose tokens it covers.
            sample["documents"][: len(self.lead)] = sample["documents"][len(self.lead)]
        if self.stream.sizes is not None:
            sample["sizes"] = np.array(self.stream.sizes[begin:end], dtype=np.int64)
            sample["sizes"][: len(self.lead)] = 0
        if self.given:
            sample["given"] = np.isin(sample["tokens"], self.given)
        return sample
