"""A batch as people read it: its text, what of it is learnt, its special tokens, documents and padding.

Rows are those of a batch as training has it, so that what is shown is what the loss is given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

from llmlab.data.collate import IGNORED

if TYPE_CHECKING:
    from llmlab.data.tokenizer import Tokenizer

# Bold green, magenta, and bold magenta on green; faint for what is no text.
COLOURS = {(True, False): "1;32", (False, True): "35", (True, True): "1;30;42", "note": "2"}
# Mathematical brackets: hardly any text has them, as it may well have [ ] and < >.
LEARNT = "\N{MATHEMATICAL LEFT WHITE SQUARE BRACKET}{}\N{MATHEMATICAL RIGHT WHITE SQUARE BRACKET}"
SPECIAL = "\N{MATHEMATICAL LEFT ANGLE BRACKET}{}\N{MATHEMATICAL RIGHT ANGLE BRACKET}"
NEWLINE, BECOMES = "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}", "\N{RIGHTWARDS ARROW}"
# A text may hold the escape sequences of a terminal.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Piece(NamedTuple):
    """Text whose tokens are alike."""

    text: str
    learnt: bool
    special: bool


@dataclass(frozen=True)
class Row:
    """A sequence that a model reads, as the pieces of each of its documents, and how many tokens it has."""

    name: str  # "" of a sample that is one sequence
    documents: list[list[Piece]]
    tokens: int
    learnt: int
    padding: int


def rows(
    batch: Mapping[str, Tensor], tokenizer: Tokenizer, *, restores: bool = False, several: str = "row"
) -> list[list[Row]]:
    """The sequences of each sample of a batch.

    Labels that are the next tokens are shown where they stand, as learnt; others behind the token that they belong to.
    restores: labels are ids of the vocabulary wherever they stand, as those of masked tokens are; else they are numbers.
    several: the name of a sequence of which a sample has several.
    """
    found: list[list[Row]] = [[] for _ in range(_size(batch))]
    for prefix, name in (("source_", "source"), ("", "target" if "source_ids" in batch else ""), ("row_", several)):
        if f"{prefix}ids" not in batch:
            continue
        numbered = prefix == "row_"
        # (B, R, T): a sequence that is one of several has a row of its own in each sample.
        keys = [k for k in ("ids", "valid", "labels", "documents") if _by_token(batch, prefix, k)]
        of = {k: _of_rows(batch[f"{prefix}{k}"], numbered) for k in keys}
        shifted = "labels" in of and _shifted(of)
        for sample, into in enumerate(found):
            for r in range(of["ids"].shape[1]):
                row = {k: a[sample, r] for k, a in of.items()}
                # A sample that has fewer sequences than others of its batch is filled up.
                if "valid" not in row or row["valid"].any():
                    called = f"{name} {r + 1}" if numbered else name
                    into.append(_row(called, row, tokenizer, shifted, restores))
    return found


def numbers(batch: Mapping[str, Tensor], sample: int) -> dict[str, float]:
    """What a sample comes with that is one number: a class, the length of a prefix."""
    n = _size(batch)
    return {k: t[sample].item() for k, t in batch.items() if isinstance(t, Tensor) and t.shape == (n,)}


def text_of(ids: Sequence[int], tokenizer: Tokenizer) -> list[Piece]:
    """Ids of which none is learnt."""
    return _pieces(np.asarray(ids), np.zeros(len(ids), bool), [None] * len(ids), tokenizer)


def written(pieces: Sequence[Piece], *, colour: bool) -> str:
    """Pieces on a terminal, or marked by brackets: learnt ones, and special tokens."""
    if colour:
        return "".join(map(_coloured, pieces))
    groups = groupby(pieces, key=lambda p: p.learnt)
    return "".join((LEARNT if learnt else "{}").format("".join(map(_marked, group))) for learnt, group in groups)


def note(text: str, *, colour: bool) -> str:
    """A line that is no text of a sample."""
    return f"\x1b[{COLOURS['note']}m{text}\x1b[0m" if colour else text


def legend(*, colour: bool) -> str:
    pieces = [Piece("learnt", True, False), Piece("special token", False, True)]
    return ", ".join([*(written([p], colour=colour) for p in pieces), f"{NEWLINE} end of a line"])


def _size(batch: Mapping[str, Tensor]) -> int:
    return len(next(batch[k] for k in ("ids", "row_ids", "source_ids") if k in batch))


def _by_token(batch: Mapping[str, Tensor], prefix: str, name: str) -> bool:
    key = f"{prefix}{name}"
    return key in batch and batch[key].shape == batch[f"{prefix}ids"].shape


def _of_rows(values: Tensor, numbered: bool) -> np.ndarray:
    array = values.cpu().numpy()
    return array if numbered else array[:, None]


def _shifted(of: Mapping[str, np.ndarray]) -> bool:
    """True if labels are the next tokens: no objective says so of itself, but where they are nearly all labels show it."""
    ids, labels = of["ids"], of["labels"]
    within = labels[..., :-1] != IGNORED
    if "documents" in of:
        within &= of["documents"][..., :-1] == of["documents"][..., 1:]
    if "valid" in of:
        within &= of["valid"][..., 1:]
    same = labels[..., :-1] == ids[..., 1:]
    # Not all: the last label of a document that nobody tells apart is another's token.
    return bool(within.any()) and float(same[within].mean()) > 0.9


def _row(name: str, row: Mapping[str, np.ndarray], tokenizer: Tokenizer, shifted: bool, restores: bool) -> Row:
    there = row.get("valid", np.ones(len(row["ids"]), bool))
    ids, labels = row["ids"][there], row.get("labels", np.full(len(there), IGNORED))[there]
    places = row.get("documents", np.zeros(len(there), np.int64))[there]
    bounds = [0, *(np.flatnonzero(np.diff(places)) + 1).tolist(), len(ids)]
    documents = []
    for begin, end in pairwise(bounds):
        own, of = ids[begin:end], labels[begin:end]
        if shifted:
            # A sequence is read without its last token, which is only a label.
            last = of[-1:][of[-1:] != IGNORED]
            learnt = np.concatenate([[False], of != IGNORED])[: len(own) + len(last)]
            documents.append(_pieces(np.concatenate([own, last]), learnt, [None] * len(learnt), tokenizer))
        else:
            learnt = of != IGNORED
            shown = [_label(int(i), int(label), tokenizer, restores) for i, label in zip(own, of, strict=True)]
            documents.append(_pieces(own, learnt, shown, tokenizer))
    return Row(name, documents, len(ids), int((labels != IGNORED).sum()), int((~there).sum()))


def _label(token: int, label: int, tokenizer: Tokenizer, restores: bool) -> str | None:
    """A label that is not the token itself."""
    if label == IGNORED or (restores and label == token):
        return None
    return tokenizer.decode([label], special=True) if restores else str(label)


def _pieces(ids: np.ndarray, learnt: np.ndarray, labels: Sequence[str | None], tokenizer: Tokenizer) -> list[Piece]:
    added = tokenizer.inner.get_added_tokens_decoder()
    special = np.isin(ids, [*tokenizer.special.values(), *(i for i, token in added.items() if token.special)])
    # A token that is shown with a label, and each special one, is a piece of its own.
    alone = [label is not None or bool(s) for label, s in zip(labels, special, strict=True)]
    groups = groupby(range(len(ids)), key=lambda i: (i if alone[i] else -1, bool(learnt[i])))
    found, before = [], ""
    for (_, learns), group in groups:
        begin, *others = group
        end = begin + 1 + len(others)
        # All ids anew: SentencePiece-like decoders drop the space before the first token of what they are given.
        whole = tokenizer.decode(ids[:end].tolist(), special=True)
        text = (
            whole[len(before) :]
            if whole.startswith(before)
            else tokenizer.decode(ids[begin:end].tolist(), special=True)
        )
        before = whole
        label = labels[begin]
        found.append(Piece(text if label is None else f"{text}{BECOMES}{label}", learns, bool(special[begin])))
    return found


def _coloured(piece: Piece) -> str:
    code = COLOURS.get((piece.learnt, piece.special))
    text = _printable(piece.text)
    return text if code is None else f"\x1b[{code}m{text}\x1b[0m"


def _marked(piece: Piece) -> str:
    text = _printable(piece.text)
    return SPECIAL.format(text) if piece.special else text


def _printable(text: str) -> str:
    shown = CONTROL.sub(lambda m: f"\\x{ord(m[0]):02x}", text)
    return shown.replace("\n", f"{NEWLINE}\n")
