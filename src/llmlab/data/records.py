"""Records on disk, tokenized and memory-mapped, and the samples that an objective gets of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from llmlab.data.framing import Framing, shares, shortened
from llmlab.errors import UserError
from llmlab.record_kinds import ANSWER, KINDS

Sample = dict[str, Any]


@dataclass(frozen=True)
class Records:
    """The records of one part of a corpus, memory-mapped. A record is a run of pieces, a piece a run of tokens.

    `tokens` (n,) uint16 or uint32; `pieces` (pieces + 1,) and `starts` (records + 1,) int64: where each begins, and the
    end; `names` (pieces,) unsigned: which of `called` a piece is, a field or a message's role; `labels` int64, (records,) of
    labelled records and of choices, (pieces,) of words, (records, 2) of questions: the first and the last token of the answer
    in the context, -1 where there is none; `confidences` (records,) float32; `scores` (pieces,) float32: of answers, how good
    each is; `rest` (bytes,) uint8 and `rests`
    (records + 1,) int64: the other fields as JSON, where they are kept.
    """

    tokens: np.ndarray
    pieces: np.ndarray
    starts: np.ndarray
    names: np.ndarray
    called: tuple[str, ...]
    labels: np.ndarray | None = None
    confidences: np.ndarray | None = None
    scores: np.ndarray | None = None
    rest: np.ndarray | None = None
    rests: np.ndarray | None = None
    sizes = None  # bytes that tokens account for, which a stream of text has

    @classmethod
    def open(cls, folder: Path, part: str, called: Sequence[str]) -> Records:
        names = ("pieces", "starts", "names", "labels", "confidences", "scores", "rest", "rests")
        files = {n: folder / f"{part}_{n}.npy" for n in names}
        # Mapped, so that ranks and workers share one copy of the pages.
        arrays = {n: np.load(f, mmap_mode="r") for n, f in files.items() if f.exists()}
        return cls(np.load(folder / f"{part}.npy", mmap_mode="r"), called=tuple(called), **arrays)

    def __len__(self) -> int:
        """Number of tokens, as of a stream of text."""
        return len(self.tokens)

    @property
    def count(self) -> int:
        return len(self.starts) - 1

    def piece(self, i: int) -> tuple[str, np.ndarray]:
        """(name, ids) of a piece."""
        # A copy: the map is read-only, of which torch.from_numpy warns, and F.embedding takes int32 and int64 alone.
        ids = np.array(self.tokens[self.pieces[i] : self.pieces[i + 1]], dtype=np.int64)
        return self.called[self.names[i]], ids

    def of(self, i: int) -> list[tuple[str, np.ndarray]]:
        """(name, ids) of each piece of a record, in order."""
        return [self.piece(j) for j in range(self.starts[i], self.starts[i + 1])]

    def kept(self, i: int) -> dict[str, Any]:
        """The other fields of a record."""
        assert self.rest is not None and self.rests is not None
        value: dict[str, Any] = json.loads(bytes(self.rest[self.rests[i] : self.rests[i + 1]]))
        return value


class RecordSamples:
    """Sample i: record i as its kind has it, at most `seq_len` tokens, int64.

    labelled: "tokens" (n,) framed as the tokenizer does, "segments" (n,) where `segments`, "label" (), "confidence" () where
    records have one. tagged: "tokens", "segments", "words" (n,), the number of the word of each token and -1 of special ones,
    and "labels" (words,). questions: "tokens", "segments", "span" (2,), the places of the answer's first and last token: (0, 0)
    where the context has none, (-1, -1) where it was cut away; "context" (2,), the place of the context's first token and the
    one behind its last. choices: "rows" and "row_segments", lists of a question with each of its choices, and "answer" ().
    similar: "rows", "row_segments": the text, one that is similar and, if there is one, one that is not. pairs: "source" and
    "target", which ends with eos. chat: "messages", a list of ids, and "roles". preferences: "prompt" and "answers", the best
    first, each of which fits into `seq_len` with the prompt, and "scores" (answers,) where records have them. rated: "prompt",
    "answer" and "good" (), 1 or 0. prompts: "prompt" and "rest", the record's other fields. answer: tokens that are kept free
    behind a prompt, within `seq_len`. texts: of labelled records "joined", the two in both "orders", or "apart": "rows" and
    "row_segments" in place of "tokens" and "segments".
    """

    def __init__(
        self,
        records: Records,
        kind: str,
        framing: Framing,
        seq_len: int,
        *,
        segments: bool = False,
        pad: int = 0,
        answer: int = 0,
        texts: str = "joined",
    ):
        self.records, self.kind, self.framing = records, KINDS[kind], framing
        self.seq_len, self.segments, self.pad, self.answer = seq_len - answer, segments, pad, answer
        self.documents, self.texts = False, texts
        if texts != "joined" and (alone := int((np.diff(records.starts) < 2).sum())):
            raise ValueError(
                f"the objective compares two texts, but {alone:,} of {records.count:,} records have no text_b"
            )
        least = self._extra(np.array([2])).item() + 2
        if self.seq_len < least:
            behind = f" with answers of alignment.max_new={answer} tokens" if answer else ""
            raise ValueError(
                f"data.seq_len must be at least {least + answer} for {self.kind}{behind}, but is {seq_len}"
            )

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def rows(self) -> np.ndarray:
        """(samples,) int64: the numbers of the records that are samples: all but conversations whose answers are all cut away,
        which would teach nothing."""
        r = self.records
        if self.kind.name != "chat" or ANSWER not in r.called or not r.count:
            return np.arange(r.count)
        answers = np.append(np.flatnonzero(np.asarray(r.names) == r.called.index(ANSWER)), len(r.names))
        first = answers[np.searchsorted(answers, r.starts[:-1])]
        ahead = r.pieces[first] - r.pieces[r.starts[:-1]] + len(self.framing.lead)
        rows = np.flatnonzero((first < r.starts[1:]) & (ahead < self.seq_len))
        if not len(rows):
            raise UserError(
                f"data.seq_len={self.seq_len} cuts away the answers of all {r.count:,} conversations of a part, training or "
                f"validation; the first answer begins behind {ahead.min():,} tokens"
            )
        return rows

    def _extra(self, pieces: np.ndarray) -> np.ndarray:
        """Special tokens of records of so many pieces."""
        framing, end = self.framing, int(self.framing.end is not None)
        if self.kind.name == "labelled" and self.texts != "apart":
            return np.where(pieces > 1, framing.pair.extra, framing.single.extra)
        if self.kind.name in ("labelled", "tagged", "similar"):
            return np.full_like(pieces, framing.single.extra)
        if self.kind.name in ("questions", "choices"):
            return np.full_like(pieces, framing.pair.extra)
        ends = {"pairs": end, "preferences": end, "rated": end, "prompts": 0}.get(self.kind.name)
        return len(framing.lead) + (end * pieces if ends is None else np.full_like(pieces, ends))

    @cached_property
    def full(self) -> np.ndarray:
        """(samples,) int64: tokens of each record uncut, the special ones included."""
        return self._full[self.rows]

    @cached_property
    def _full(self) -> np.ndarray:
        r = self.records
        pieces = np.diff(r.starts)
        texts = np.diff(r.pieces[r.starts])
        # Of several sequences the longest: the prompt and its longest answer, a question and its longest choice.
        together, apart = (
            self.kind.name in ("preferences", "choices"),
            self.kind.name == "similar" or self.texts == "apart",
        )
        if together or apart:
            sizes = np.diff(r.pieces)
            first = sizes[r.starts[:-1]] if together else 0
            others = np.array(sizes)
            if together:
                others[r.starts[:-1]] = 0
            # Where two starts are equal `reduceat` gives that element and not an identity: each record has two pieces or
            # more.
            texts = first + (np.maximum.reduceat(others, r.starts[:-1]) if len(others) else 0)
        return texts + self._extra(pieces)

    @cached_property
    def lengths(self) -> np.ndarray:
        """(samples,) int64: tokens of each record as a sample has them."""
        return np.minimum(self.full, self.seq_len)

    @property
    def cut(self) -> int:
        """Records that are longer than `seq_len`."""
        return int((self.full > self.seq_len).sum())

    @property
    def lost(self) -> int:
        """Answers to questions that are cut away with the end of their context; conversations of which all are."""
        if self.kind.name == "chat":
            return self.records.count - len(self)
        if self.kind.name != "questions" or self.records.labels is None:
            return 0
        spans = self.records.labels
        return int(((spans[:, 0] >= 0) & (spans[:, 1] >= self.room(*self.sizes))).sum())

    def told(self, at: str) -> list[str]:
        """Lines on what does not fit into `seq_len`, which `at` names."""
        lines = [f"{self.cut:,} of {len(self):,} records cut at {at}"] if self.cut else []
        if self.lost and self.kind.name == "chat":
            left = "conversation is left out: its" if self.lost == 1 else "conversations are left out: their"
            lines.append(f"{self.lost:,} {left} answers lie behind {at}")
        elif self.lost:
            lines.append(
                f"{self.lost:,} answers lie behind {at} and are no targets; objective.stride={self.seq_len // 3} reads long "
                "contexts in windows"
            )
        return lines

    @property
    def sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of each question, and of its context."""
        sizes = np.diff(self.records.pieces)
        return sizes[::2], sizes[1::2]

    def room(self, questions: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        """Tokens of contexts of these lengths that there is room for behind their questions, which give way from a half on."""
        room = self.seq_len - self.framing.pair.extra
        return room - np.minimum(questions, np.maximum(room // 2, room - contexts))

    @property
    def tokens_per_sample(self) -> float:
        return float(self.lengths.mean()) + self.answer if len(self) else 0.0

    def spread(self, n: int) -> list[int]:
        """The numbers of n records whose lengths stand for those of all: one from each n-th of them by length."""
        # numpy's default sort is not stable and has versions for the CPU's vector instructions: ties would differ by
        # machine.
        by_length = np.argsort(self.lengths, kind="stable")
        return [int(by_length[(2 * i + 1) * len(self) // (2 * n)]) for i in range(n)]

    def __getitem__(self, i: int) -> Sample:
        if not 0 <= i < len(self):
            raise IndexError(f"record {i} of {len(self)}")
        if self.kind.name == "questions":
            return self.question(i)
        i = int(self.rows[i])
        found = self.records.of(i)
        sample: Sample = getattr(self, f"_{self.kind.name}")(found)
        if self.records.labels is not None:
            self._label(sample, i)
        if self.records.scores is not None:
            first, end = self.records.starts[i] + 1, self.records.starts[i + 1]
            sample["scores"] = np.array(self.records.scores[first:end])
        if self.records.confidences is not None:
            sample["confidence"] = np.float32(self.records.confidences[i])
        if self.kind.keeps_rest:
            sample["rest"] = self.records.kept(i)
        return sample

    def _label(self, sample: Sample, i: int) -> None:
        """Adds to a sample what its record is labelled with."""
        labels, starts = self.records.labels, self.records.starts
        assert labels is not None
        if self.kind.name == "tagged":
            # Those of words that are cut away are targets of no token.
            sample["labels"] = np.array(labels[starts[i] : starts[i + 1]], dtype=np.int64)
        else:
            sample[{"choices": "answer", "rated": "good"}.get(self.kind.name, "label")] = np.int64(labels[i])

    def _framed(self, texts: Sequence[np.ndarray]) -> Sample:
        ids, segments = self.framing.framed(texts, self.seq_len)
        return {"tokens": ids, **({"segments": segments} if self.segments else {})}

    def _rows(self, rows: Sequence[Sequence[np.ndarray]]) -> Sample:
        framed = [self._framed(texts) for texts in rows]
        segments = {"row_segments": [f["segments"] for f in framed]} if self.segments else {}
        return {"rows": [f["tokens"] for f in framed], **segments}

    def _labelled(self, found: list[tuple[str, np.ndarray]]) -> Sample:
        texts = [ids for _, ids in found]
        if self.texts == "joined":
            return self._framed(texts)
        return self._rows([texts, texts[::-1]] if self.texts == "orders" else [[text] for text in texts])

    def _similar(self, found: list[tuple[str, np.ndarray]]) -> Sample:
        return self._rows([[ids] for _, ids in found])

    def _choices(self, found: list[tuple[str, np.ndarray]]) -> Sample:
        (_, question), *choices = found
        return self._rows([[question, ids] for _, ids in choices])

    def _tagged(self, found: list[tuple[str, np.ndarray]]) -> Sample:
        sample = self._framed([np.concatenate([ids for _, ids in found])])
        words, before = np.full(len(sample["tokens"]), -1), len(self.framing.single.before)
        numbers = np.repeat(np.arange(len(found)), [len(ids) for _, ids in found])
        room = len(words) - self.framing.single.extra
        words[before : before + room] = numbers[:room]
        return {**sample, "words": words}

    def question(self, i: int, begin: int = 0, *, windows: bool = False) -> Sample:
        """Question i with its context from the token `begin` on. windows: an answer that is not whole there stands in another
        window, and is none in this one."""
        question, context = (ids for _, ids in self.records.of(i))
        frame = self.framing.pair
        # The context is shortened first: without the question there is nothing to answer.
        room = int(self.room(np.array(len(question)), np.array(len(context))))
        question, context = question[: self.seq_len - frame.extra - room], context[begin : begin + room]
        first = len(frame.before) + len(question) + len(frame.between)
        sample = {**self._framed([question, context]), "context": np.array([first, first + len(context)])}
        if self.records.labels is not None:
            span = np.array(self.records.labels[i], dtype=np.int64)
            there = begin <= span[0] and span[1] < begin + len(context)
            # BERT for SQuAD 2 (Devlin et al. 2018, section 4.3): an answer that is not there begins and ends at [CLS].
            none = np.zeros(2, np.int64) if windows or span[0] < 0 else np.full(2, -1)
            sample["span"] = first + span - begin if there else none
        return sample

    def of_question(self, i: int) -> list[tuple[int, Sample]]:
        """The samples of question i, each with the place of its first token in the context: here one."""
        return [(0, self[i])]

    def _pairs(self, found: list[tuple[str, np.ndarray]]) -> Sample:
        texts = dict(found)
        room = self.seq_len - len(self.framing.lead) - len(self._end())
        a, b = shares([len(texts["source"]), len(texts["target"])], room)
        return {"source": self._led(texts["source"][:a]), "target": self._ended(texts["target"][:b])}

    def _chat(self, found: list[tuple[str, np.ndarray]]) -> Sample:
        messages: list[np.ndarray] = []
        room = self.seq_len - len(self.framing.lead)
        for i, (_, ids) in enumerate(found):
            whole = self._ended(ids)[:room]
            room -= len(whole)
            messages.append(self._led(whole) if i == 0 else whole)
        kept = sum(len(m) > 0 for m in messages)
        return {"messages": messages[:kept], "roles": [name for name, _ in found][:kept]}

    def _preferences(self, found: list[tuple[str, np.ndarray]]) -> Sample:
        prompt, answers = found[0][1], [ids for _, ids in found[1:]]
        room = self.seq_len - len(self.framing.lead) - len(self._end())
        a, b = shares([len(prompt), max(map(len, answers))], room)
        return {
            "prompt": self._led(shortened(prompt, a, "start")),
            "answers": [self._ended(ids[:b]) for ids in answers],
        }

    def _rated(self, found: list[tuple[str, np.ndarray]]) -> Sample:
        (_, prompt), (_, answer) = found
        a, b = shares([len(prompt), len(answer)], self.seq_len - len(self.framing.lead) - len(self._end()))
        return {"prompt": self._led(shortened(prompt, a, "start")), "answer": self._ended(answer[:b])}

    def _prompts(self, found: list[tuple[str, np.ndarray]]) -> Sample:
        return {"prompt": self._led(shortened(found[0][1], self.seq_len - len(self.framing.lead), "start"))}

    def _end(self) -> list[int]:
        return [] if self.framing.end is None else [self.framing.end]

    def _led(self, ids: np.ndarray) -> np.ndarray:
        return np.concatenate([np.asarray(self.framing.lead, dtype=np.int64), ids])

    def _ended(self, ids: np.ndarray) -> np.ndarray:
        return np.concatenate([ids, np.asarray(self._end(), dtype=np.int64)])
