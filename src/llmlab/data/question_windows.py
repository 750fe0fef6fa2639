"""Long contexts of questions as windows that overlap (BERT for SQuAD: Devlin et al. 2018, arXiv:1810.04805)."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from llmlab.data.records import RecordSamples, Sample


class QuestionWindows:
    """Sample i: window i, a question with a piece of its context; an answer that is not whole in the piece is none there.

    The pieces of a context begin `stride` tokens apart, the last one reaches its end, as `doc_stride` of BERT's run_squad.py
    has it; where a question leaves less room than `stride`, so much less apart that no token is left out.
    """

    def __init__(self, records: RecordSamples, stride: int):
        self.records, self.stride = records, stride
        self.seq_len, self.pad, self.documents = records.seq_len, records.pad, False
        questions, contexts = records.sizes
        self.room = records.room(questions, contexts)
        self.step = np.minimum(stride, self.room)
        beyond = np.maximum(contexts - self.room, 0)
        self.per_question = 1 + -(-beyond // self.step)
        self.ends = np.cumsum(self.per_question)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def place(self, i: int) -> tuple[int, int]:
        """(the question, the first token of its context) of window i."""
        question = int(np.searchsorted(self.ends, i, side="right"))
        number = i - int(self.ends[question] - self.per_question[question])
        return question, number * int(self.step[question])

    def __getitem__(self, i: int) -> Sample:
        if not 0 <= i < len(self):
            raise IndexError(f"window {i} of {len(self)}")
        return self.records.question(*self.place(i), windows=True)

    def of_question(self, i: int) -> list[tuple[int, Sample]]:
        """The windows of question i, each with the place of its first token in the context."""
        begins = range(0, int(self.per_question[i] * self.step[i]), int(self.step[i]))
        return [(begin, self.records.question(i, begin, windows=True)) for begin in begins]

    @cached_property
    def lengths(self) -> np.ndarray:
        """(windows,) int64: tokens of each."""
        questions, contexts = self.records.sizes
        framed = np.minimum(questions, self.seq_len - self.records.framing.pair.extra - self.room)
        which = np.repeat(np.arange(len(self.ends)), self.per_question)
        number = np.arange(len(self)) - (self.ends - self.per_question)[which]
        piece = np.minimum(contexts[which] - number * self.step[which], self.room[which])
        return framed[which] + piece + self.records.framing.pair.extra

    @property
    def tokens_per_sample(self) -> float:
        return float(self.lengths.mean()) if len(self) else 0.0

    def spread(self, n: int) -> list[int]:
        """The numbers of n windows whose lengths stand for those of all: one from each n-th of them by length."""
        by_length = np.argsort(self.lengths, kind="stable")
        return [int(by_length[(2 * i + 1) * len(self) // (2 * n)]) for i in range(n)]

    @property
    def cut(self) -> int:
        """Questions that are cut themselves: of contexts nothing is."""
        questions, _ = self.records.sizes
        return int((questions > self.seq_len - self.records.framing.pair.extra - self.room).sum())

    @property
    def lost(self) -> int:
        """Answers that are whole in no window."""
        spans = self.records.records.labels
        if spans is None:
            return 0
        first, last = spans[:, 0], spans[:, 1]
        # The last window that begins before the answer reaches furthest of those that hold its first token.
        number = np.minimum(first // self.step, self.per_question - 1)
        return int(((first >= 0) & (last >= number * self.step + self.room)).sum())

    def told(self, at: str) -> list[str]:
        """Lines on what does not fit, and on the windows."""
        n = self.records.records.count
        lines = [
            f"{n:,} questions are read in {len(self):,} windows, whose contexts begin {self.stride:,} tokens apart"
        ]
        if self.cut:
            lines.append(f"{self.cut:,} of {n:,} questions cut at {at}")
        if self.lost:
            lines.append(f"{self.lost:,} answers are whole in no window, as if the context had none")
        return lines
