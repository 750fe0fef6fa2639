"""The texts of a corpus on disk while it is made: written once, read as often as needed, never all in memory."""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict, cast

import numpy as np

from llmlab.data import cache, fingerprint
from llmlab.data.account import Document, Read

TEXTS, ABOUT = "texts", "texts.json"
ENDS, LENGTHS, PLACES, NORMALS = (f"texts_{of}.npy" for of in ("ends", "lengths", "places", "normals"))
BUFFER = 1 << 20


class About(TypedDict):
    fingerprint: str
    bytes: int
    read: Read


class TextStore:
    """Texts in their order, and of each where it ends in the file (bytes), its length (characters), its place in [0, 1) and a
    number that it shares with those that are equal up to white space and case.

    A place follows from the text alone: the first 8 bytes of its sha256 as a fraction.
    """

    def __init__(self, folder: Path, arrays: Sequence[np.ndarray], about: About):
        self.folder, self.about = folder, about
        self.ends, self.lengths, self.places, self.normals = arrays

    def __len__(self) -> int:
        return len(self.lengths)

    def texts(self, indexes: Iterable[int]) -> Iterator[str]:
        """The texts of these numbers, which rise."""
        with (self.folder / TEXTS).open("rb", buffering=BUFFER) as f:
            for i in indexes:
                begin = int(self.ends[i])
                f.seek(begin)
                yield f.read(int(self.ends[i + 1]) - begin).decode("utf-8")

    def remove(self) -> None:
        """Delete its files: a corpus holds ids alone."""
        # First what tells that the others are there.
        for name in (ABOUT, TEXTS, ENDS, LENGTHS, PLACES, NORMALS):
            (self.folder / name).unlink()

    @classmethod
    def write(cls, folder: Path, documents: Iterable[Document], read: Callable[[], Read]) -> TextStore:
        """Write all documents, and their list (`fingerprint.NAME`), into `folder`. read: their account, known at the end."""
        ends, lengths, places, normals = array("q", [0]), array("q"), array("d"), array("Q")
        total = hashlib.sha256()
        with (folder / TEXTS).open("wb", buffering=BUFFER) as f, fingerprint.listing(folder) as list_one:
            for document in documents:
                encoded = document.text.encode("utf-8")
                listed = fingerprint.listed(document.name, encoded)
                list_one(listed)
                digest = bytes.fromhex(listed.digest)
                total.update(digest)
                f.write(encoded)
                ends.append(ends[-1] + len(encoded))
                lengths.append(len(document.text))
                # Not hash(): Python salts that of a text anew in each process.
                places.append(int.from_bytes(digest[:8], "big") / 2**64)
                normals.append(int.from_bytes(fingerprint.normal(document.text)[:8], "big"))
        arrays = [np.array(a) for a in (ends, lengths, places, normals)]
        for name, of in zip((ENDS, LENGTHS, PLACES, NORMALS), arrays, strict=True):
            cache.save_array(folder / name, of)
        about: About = {"fingerprint": total.hexdigest(), "bytes": ends[-1], "read": read()}
        # Last: who finds it finds all of the rest.
        cache.write_manifest(folder / ABOUT, dict(about))
        return cls(folder, arrays, about)

    @classmethod
    def open(cls, folder: Path) -> TextStore | None:
        """What `write` left in `folder`, None where it did not come to its end."""
        if (content := cache.read_checked(folder / ABOUT)) is None:
            return None
        arrays = [np.load(folder / n, allow_pickle=False) for n in (ENDS, LENGTHS, PLACES, NORMALS)]
        return cls(folder, arrays, cast(About, content))


@dataclass
class Part:
    """Texts of a store that are one part of a corpus. begin, end: characters at which its first text begins, and at which its
    last one ends, None for the whole of it."""

    store: TextStore
    indexes: np.ndarray
    begin: int = 0
    end: int | None = None

    def __len__(self) -> int:
        return len(self.indexes)

    def __iter__(self) -> Iterator[str]:
        last = len(self) - 1
        for k, text in enumerate(self.store.texts(self.indexes.tolist())):
            yield text[self.begin if k == 0 else 0 : self.end if k == last else None]

    def whole(self, k: int) -> tuple[bool, bool]:
        """(the k-th text begins where its document does, it ends there)."""
        return k > 0 or self.begin == 0, k < len(self) - 1 or self.end is None

    @property
    def characters(self) -> int:
        if not len(self):
            return 0
        cut = 0 if self.end is None else int(self.store.lengths[self.indexes[-1]]) - self.end
        return int(self.store.lengths[self.indexes].sum()) - self.begin - cut

    @property
    def bytes(self) -> int:
        if self.begin == 0 and self.end is None:
            return int(np.diff(self.store.ends)[self.indexes].sum())
        return sum(len(text.encode("utf-8")) for text in self)

    def groups(self, characters: int) -> Iterator[Part]:
        """The same in consecutive parts of whole texts, each of about so many characters or of one longer text."""
        number = np.cumsum(self.store.lengths[self.indexes]) // characters
        borders = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), len(self)]
        for a, b in itertools.pairwise(borders):
            yield Part(self.store, self.indexes[a:b], self.begin * (a == 0), self.end if b == len(self) else None)


def split(store: TextStore, by: str, validation: float, together: bool = True) -> tuple[dict[str, Part], str]:
    """(training and validation part, how they were split): whole documents by their places, or all text after a share of its
    characters; by `none` all of it is for training.

    By its place a document stays on its side whatever else is in the corpus, but for one that is equal to another before it up
    to white space and case, and goes to the other's side if `together`. Where that leaves one side empty (a corpus of one
    file) the split is by position.
    """
    every = np.arange(len(store))
    if by == "none":
        return {"train": Part(store, every), "validation": Part(store, every[:0])}, by
    places = store.places
    if together:
        _, first, same = np.unique(store.normals, return_index=True, return_inverse=True)
        places = places[first[same]]
    held_out = places < validation
    if by == "document" and held_out.any() and not held_out.all():
        return {"train": Part(store, every[~held_out]), "validation": Part(store, every[held_out])}, by
    begins = np.cumsum(store.lengths) - store.lengths
    cut = int(int(store.lengths.sum()) * (1 - validation))
    k = int(np.searchsorted(begins, cut, side="right")) - 1  # the document in which the cut is
    here = cut - int(begins[k])
    train = Part(store, every[: k + 1], end=here) if here else Part(store, every[:k])
    return {"train": train, "validation": Part(store, every[k:], begin=here)}, "position"


def leave_out_repeated(parts: dict[str, Part]) -> int:
    """Take whole documents that the training part has too out of the held-out part, unless none would be left; their number."""
    train, held_out = parts["train"], parts["validation"]
    trained = [n for k, n in enumerate(train.store.normals[train.indexes].tolist()) if all(train.whole(k))]
    repeated = np.isin(held_out.store.normals[held_out.indexes], np.array(trained, dtype=np.uint64))
    for k in (0, len(held_out) - 1):
        if len(held_out) and not all(held_out.whole(k)):
            repeated[k] = False
    n = int(repeated.sum())
    if 0 < n < len(held_out):
        parts["validation"] = replace(held_out, indexes=held_out.indexes[~repeated])
        return n
    return 0
