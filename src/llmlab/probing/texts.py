"""Labelled texts as a model reads them: in its own tokens, framed as its tokenizer frames a text, and cut to one length."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llmlab.data import labelled_sets
from llmlab.data.account import reasons
from llmlab.data.framing import Framing
from llmlab.data.record_arrays import checked_classes, texts_of
from llmlab.data.record_files import Record
from llmlab.data.record_files import records as of_files
from llmlab.errors import UserError, near
from llmlab.files import expanded
from llmlab.json_files import loads
from llmlab.record_kinds import KINDS

if TYPE_CHECKING:
    from llmlab.data.tokenizer import Tokenizer

LABELLED = KINDS["labelled"]


@dataclass(frozen=True)
class Labelled:
    """A labelled set. name: as it is shown; classes: the labels in the order of their numbers; repeated: records that were left
    out as their text is there before. notes: what else is left out."""

    name: str
    records: Sequence[Record]
    classes: Sequence[str]
    repeated: int = 0
    notes: Sequence[str] = ()

    @cached_property
    def numbers(self) -> np.ndarray:
        """(texts,) int64: the class of each."""
        of = {label: i for i, label in enumerate(self.classes)}
        return np.array([of[r["label"]] for r in self.records], dtype=np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all texts and labels, by which two results are known to be of the same set."""
        text = json.dumps(list(self.records), ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()


@dataclass(frozen=True)
class Read:
    """The texts of a set as a model reads them. ids, segments: int64 (n,) each. cut: texts that were longer.

    opened: a text begins with a token of the tokenizer's own, such as BERT's [CLS].
    """

    ids: Sequence[np.ndarray]
    segments: Sequence[np.ndarray]
    cut: int
    opened: bool


def open_set(data: str, fields: Mapping[str, str]) -> Labelled:
    """The set that a name, a file or a folder holds. UserError where there is none, or too little to learn from."""
    notes: list[str] = []
    if data in labelled_sets.SETS:
        if fields:
            raise UserError(f"data.fields.{next(iter(fields))} is for files, but data={data} is none; leave it out")
        found, name = labelled_sets.records(data), data
    else:
        path = expanded(data)
        if not path.exists():
            words = near(data, labelled_sets.SETS)
            raise UserError(f"data={data}: there is no such file or folder, and no such set of texts; {words}")
        source = of_files(path, LABELLED, fields)
        found, name = [loads(d.text, d.name) for d in source.read(lambda done, total: None)], _name(path)
        if skipped := source.account.fields()["skipped"]:
            notes.append(f"data={data}: skipped {reasons(skipped)}")
        if not found:
            raise UserError(f"data={data}: there is no record with a text in it")
        if unsure := sum(r.get("confidence", 1.0) != 1 for r in found):
            notes.append(f"{unsure:,} texts have a confidence below 1, or votes that differ: each counts whole here")
    # A text that occurs twice could stand on both sides of a split.
    first: dict[tuple[str, str | None], Record] = {}
    for r in found:
        first.setdefault((r["text"], r.get("text_b")), r)
    if other := sum(r["label"] != first[r["text"], r.get("text_b")]["label"] for r in found):
        notes.append(f"{other:,} texts are there again with another label: the first counts")
    kept = list(first.values())
    labels = checked_classes(kept, f"data={data}")
    counts = Counter(r["label"] for r in kept)
    if few := [label for label in labels if counts[label] < 2]:
        raise UserError(
            f"data={data}: only one text has the label {few[0]!r}; each needs two, to learn from and to score"
        )
    return Labelled(name, kept, labels, len(found) - len(kept), notes)


def _name(path: Path) -> str:
    return path.resolve().name


def read(labelled: Labelled, tokenizer: Tokenizer, lead: Sequence[int], seq_len: int) -> Read:
    """lead: ids that a text of the model begins with (bos). UserError for a text that the tokenizer can't encode."""
    framing = Framing.from_tokenizer(tokenizer, lead)
    if seq_len < framing.pair.extra + 2:
        raise UserError(f"seq_len={seq_len} leaves no room for a text between its special tokens; choose a longer one")
    pieces = [[text for _, text in texts_of(r, LABELLED)] for r in labelled.records]
    flat = iter(tokenizer.encode_all(text for texts in pieces for text in texts))
    ids, segments, cut = [], [], 0
    for texts in pieces:
        encoded = [next(flat) for _ in texts]
        frame = framing.single if len(encoded) == 1 else framing.pair
        cut += sum(map(len, encoded)) + frame.extra > seq_len
        one, kinds = framing.framed(encoded, seq_len)
        if not len(one):
            raise UserError(f"a text has no token: {texts[0][:60]!r}")
        ids.append(one)
        segments.append(kinds)
    return Read(ids, segments, cut, bool(framing.single.before))
