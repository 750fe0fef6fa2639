"""The training and the held-out part of texts: a text is in one of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmlab.data import fingerprint
from llmlab.data.account import Document
from llmlab.data.corpus import PARTS

if TYPE_CHECKING:
    from llmlab.config import schema


class Piece:
    """A stretch of one document; `begins` and `ends` where the document does."""

    def __init__(self, text: str, ends: bool = True, begins: bool = True):
        self.text, self.ends, self.begins = text, ends, begins


def split_texts(documents: Sequence[Document], data: schema.Data) -> tuple[dict[str, list[Piece]], str]:
    """Whole documents by a hash of their text, or all text after a share of its characters.

    By hash a document stays on its side whatever else is in the corpus, but for one that is equal to another before it up to
    white space and case, and goes to the other's side. Where one side is left empty (a corpus of one file) it is by position.
    """
    if data.split == "none":
        return {"train": [Piece(d.text) for d in documents], "validation": []}, "none"
    if data.split == "document":
        parts: dict[str, list[Piece]] = {part: [] for part in PARTS}
        sides: dict[bytes, str] = {}
        for document in documents:
            # Not hash(): Python salts that of a text anew in each process, and a document would change sides from run
            # to run.
            place = int.from_bytes(hashlib.sha256(document.text.encode("utf-8")).digest()[:8], "big") / 2**64
            side = sides.setdefault(
                fingerprint.normal(document.text), "validation" if place < data.validation else "train"
            )
            parts[side].append(Piece(document.text))
        if all(parts.values()):
            return parts, "document"
    cut = int(sum(len(d.text) for d in documents) * (1 - data.validation))
    parts = {part: [] for part in PARTS}
    at = 0
    for document in documents:
        here = min(max(cut - at, 0), len(document.text))
        if here:
            parts["train"].append(Piece(document.text[:here], here == len(document.text)))
        if here < len(document.text):
            parts["validation"].append(Piece(document.text[here:], begins=here == 0))
        at += len(document.text)
    return parts, "position"


def leave_out_repeated(parts: dict[str, list[Piece]]) -> int:
    """Take whole documents that the training part has too out of the held-out part, unless none would be left; their number."""
    trained = {fingerprint.normal(p.text) for p in parts["train"] if p.begins and p.ends}
    kept = [p for p in parts["validation"] if not (p.begins and p.ends and fingerprint.normal(p.text) in trained)]
    n = len(parts["validation"]) - len(kept)
    if kept and n:
        parts["validation"] = kept
        return n
    return 0
