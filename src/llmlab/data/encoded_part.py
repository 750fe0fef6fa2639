"""The ids of one part of a corpus on disk, written in groups of documents, of which those that are there are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypedDict, cast

import numpy as np

from llmlab.data import cache, encoding
from llmlab.data.text_store import Part
from llmlab.data.tokenizer import Tokenizer

GROUP = 1 << 25  # characters of a group: what is tokenized again after a kill
Tick = Callable[[int], None]


class Group(TypedDict):
    """Of a group of documents: the number of its ids, whether the bytes of each are told, the most of them and all, and the
    bytes that are under the token for the unknown and under none."""

    tokens: int
    told: bool
    largest: int
    bytes: int
    unknown: int
    dropped: int


class Written(TypedDict):
    """Of a part: the number of its ids, and notes."""

    tokens: int
    notes: list[str]


class PartWriter:
    """Writes parts of a corpus into a folder. around: ids with which each document begins, and the one with which it ends.

    Where both are one token it stands between two documents once.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, around: tuple[tuple[int, ...], int | None], tick: Tick):
        self.folder, self.tokenizer, self.tick = folder, tokenizer, tick
        self.lead, self.end = around
        self.dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32

    def write(self, name: str, part: Part, sized: bool) -> tuple[int, list[str]]:
        """The ids, where documents start and, if `sized`, the bytes of each id; (number of ids, notes)."""
        found = cast("Written | None", cache.read_checked(self._done(name)))
        if found is None:
            found = self._part(name, part, sized)
            cache.write_manifest(self._done(name), dict(found))
        else:
            self.tick(part.characters)
        # Not before it is told that the part is whole: until then a group that is told of is needed.
        for file in self.folder.glob(f"{name}.[0-9]*.*"):
            file.unlink()
        return found["tokens"], found["notes"]

    def forget(self, name: str) -> None:
        """Delete what tells that a part is whole."""
        self._done(name).unlink()

    def _done(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _part(self, name: str, part: Part, sized: bool) -> Written:
        groups: list[Group] = []
        starts: list[np.ndarray] = [np.empty(0, dtype=np.int64)]
        at = 0
        for n, texts in enumerate(part.groups(GROUP)):
            here = f"{name}.{n:06}"
            found = cast("Group | None", cache.read_checked(self.folder / f"{here}.json"))
            if found is None:
                found = self._group(here, texts, sized, first=at == 0)
                cache.write_manifest(self.folder / f"{here}.json", dict(found))
            else:
                self.tick(texts.characters)
            groups.append(found)
            starts.append(at + np.load(self._file(here, "starts.npy"), allow_pickle=False))
            at += found["tokens"]
        told = sized and all(g["told"] for g in groups)
        files = [f"{name}.{n:06}" for n in range(len(groups))]
        raw = [self._file(f, "raw") for f in files]
        cache.raw_to_npy(raw, self.folder / f"{name}.npy", self.dtype, self.dtype, at, keep=True)
        cache.save_array(self.folder / f"{name}_starts.npy", np.concatenate(starts))
        if told:
            kind = np.min_scalar_type(max((g["largest"] for g in groups), default=0))
            sizes = [self._file(f, "sizes") for f in files]
            cache.raw_to_npy(sizes, self.folder / f"{name}_sizes.npy", np.uint32, kind, at, keep=True)
        total, unknown, dropped = (sum(g[key] for g in groups) for key in ("bytes", "unknown", "dropped"))
        return {"tokens": at, "notes": _losses(name, sized and not told, total, unknown, dropped)}

    def _file(self, group: str, of: str) -> Path:
        return self.folder / f"{group}.{of}"

    def _group(self, name: str, part: Part, sized: bool, *, first: bool) -> Group:
        starts: list[int] = []
        at = largest = unknown = dropped = total = k = 0
        told, begins = sized, True
        with self._file(name, "raw").open("wb") as raw, self._file(name, "sizes").open("wb") as raw_sizes:
            for chunk in encoding.encode(self.tokenizer, part, sized):
                ids, sizes = chunk.ids, chunk.sizes
                at_begin, at_end = part.whole(k)
                # GPT-2's <|endoftext|> is both eos and bos: two in a row would be a document without text.
                if begins and at_begin and self.lead and ((first and at == 0) or self.end not in self.lead):
                    ids = np.concatenate([self.lead, ids])
                    sizes = None if sizes is None else np.concatenate([np.zeros(len(self.lead), dtype=np.int64), sizes])
                if chunk.last and at_end and self.end is not None:
                    ids = np.append(ids, self.end)
                    sizes = None if sizes is None else np.append(sizes, 0)
                if chunk.left and sizes is not None and len(sizes):
                    sizes[-1] += chunk.left
                if begins and len(ids):
                    starts.append(at)
                begins = chunk.last
                k += chunk.last
                at += len(ids)
                # `ndarray.tofile` writes through a C FILE of its own, and does not look at the error with which that
                # closes: on a full disk calls for less than its buffer lose their bytes in silence (numpy 2.4).
                raw.write(ids.astype(self.dtype).tobytes())
                told = told and sizes is not None
                if sizes is not None and len(sizes):
                    largest = max(largest, int(sizes.max()))
                    total += int(sizes.sum())
                    # Four bytes each at first: the largest size, and with it the type that is enough, is known at the
                    # end only.
                    raw_sizes.write(sizes.astype(np.uint32).tobytes())
                unknown, dropped = unknown + chunk.unknown, dropped + chunk.dropped
                self.tick(chunk.length)
        cache.save_array(self._file(name, "starts.npy"), np.array(starts, dtype=np.int64))
        return {
            "tokens": at,
            "told": told,
            "largest": largest,
            "bytes": total,
            "unknown": unknown,
            "dropped": dropped,
        }


def _losses(part: str, untold: bool, whole: int, unknown: int, dropped: int) -> list[str]:
    """Notes on text that bits per byte of a part don't tell of, a line each."""
    of = "the held-out text" if part == "validation" else "the text"
    if untold:
        return [f"no bits per byte: the tokenizer does not tell which bytes of {of} its tokens are"]
    lost = [
        f"{100 * n / whole:.2g} % of {of} {what}"
        for n, what in ((unknown, "is under the token for the unknown"), (dropped, "is under no token"))
        if n
    ]
    return [f"{' and '.join(lost)}: bits per byte count those bytes, but the loss does not know them"] if lost else []
