"""Documents, where they come from, and the account of what was read and what was left out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, NotRequired, TypedDict

from llmlab.errors import UserError

Tick = Callable[[int, int], None]
NAMED = 3  # names a reason on screen; the record has NAMES
NAMES = 20
ENDING = "of another ending"
BLANK_FILE = "of white space only"
BLANK_DOCUMENT = "documents of white space only"
BLANK_RECORD = "records without text"
UNANSWERED = "conversations without an answer"
EMPTY_ANSWER = "records with an empty answer"
ALL_TIED = "preferences whose answers are all equally good"
EQUAL_ANSWERS = "preferences of which two answers are equal"
UNVOTED = "records that nobody has voted on"
UNREAD = "behind the last of data.max_documents"
NO_ROWS = "files without a row"
OTHER_MEMBER = "files in a .zip of another ending"
HIDDEN_MEMBER = "hidden files in a .zip"
# Reasons that are met while files are read, beside those by which a file is not read.
READING = (
    BLANK_FILE, BLANK_DOCUMENT, BLANK_RECORD, UNANSWERED, EMPTY_ANSWER, EQUAL_ANSWERS, ALL_TIED, UNVOTED, UNREAD,
    OTHER_MEMBER, HIDDEN_MEMBER, NO_ROWS,
)  # fmt: skip
QUARANTINE = "quarantine.jsonl"  # in a prepared corpus: what is broken, a line each


class Document(NamedTuple):
    """A text that stands for itself, and where it is from."""

    name: str
    text: str


class Skipped(TypedDict):
    """Files or documents that were left out for one reason. `names`: the first of them."""

    reason: str
    count: int
    names: list[str]
    endings: NotRequired[dict[str, int]]


class Example(TypedDict):
    """A document that a filter dropped. `text`: how it begins."""

    name: str
    reason: str
    text: str


class Filtered(TypedDict):
    """What a filter dropped of the documents that came to it."""

    filter: str
    seen: int
    dropped: int
    reasons: dict[str, int]
    examples: list[Example]


class Quarantined(TypedDict):
    """Documents that can't be read, `count` of the `of` that there are. `error`: what is wrong with the first."""

    count: int
    of: int
    error: str
    reasons: list[Skipped]


class Longest(TypedDict):
    """The longest document; `bytes` of its text in UTF-8."""

    name: str
    bytes: int


class Read(TypedDict):
    """The field data.read of run.json. `documents` are those that the filters keep, `bytes` those of their text in UTF-8.

    `fields`: the files whose text is under another key than `text`, by this key.
    """

    files: int
    documents: int
    bytes: int
    skipped: list[Skipped]
    longest: NotRequired[Longest]
    fields: NotRequired[dict[str, int]]
    quarantined: NotRequired[Quarantined]
    filters: NotRequired[list[Filtered]]


@dataclass
class Tally:
    """Names by reason, counted, the first few kept."""

    counts: Counter[str] = field(default_factory=Counter)
    names: dict[str, list[str]] = field(default_factory=dict)
    endings: Counter[str] = field(default_factory=Counter)

    def add(self, reason: str, name: str) -> None:
        self.counts[reason] += 1
        kept = self.names.setdefault(reason, [])
        # A folder may have a million files of another ending.
        if len(kept) < NAMES:
            kept.append(printable(name))

    def entries(self) -> list[Skipped]:
        found: list[Skipped] = []
        for reason, n in self.counts.items():
            found.append({"reason": reason, "count": n, "names": self.names[reason]})
            if reason == ENDING:
                found[-1]["endings"] = dict(self.endings.most_common())
        return found


class Fault(NamedTuple):
    """A document that can't be read: `where` it is, as an error begins, and `text`, how it begins."""

    name: str
    file: str
    number: int | None
    where: str
    reason: str
    error: str
    text: str = ""


@dataclass
class Account:
    """Documents and files of a source. `listed` is known once its files are listed; the rest is counted while they are read.

    strict: the first document that can't be read is an error. quarantine: the file in which such documents are listed.
    """

    place: str | None = None  # the user's folder or file
    names: Sequence[str] = ()  # of the files that are to be read
    listed: Tally = field(default_factory=Tally)
    strict: bool = True
    quarantine: Path | None = None
    files: int = 0
    documents: int = 0
    bytes: int = 0
    longest: Longest = field(default_factory=lambda: Longest(name="", bytes=-1))
    blank: Tally = field(default_factory=Tally)
    broken: Tally = field(default_factory=Tally)
    fields_found: Counter[str] = field(default_factory=Counter)
    _first: str = ""
    _file: IO[str] | None = None

    def counted(self, documents: Iterable[Document]) -> Iterator[Document]:
        """The same documents, counted; from the start each time that a source is read."""
        self.files = self.documents = self.bytes = 0
        self.longest = {"name": "", "bytes": -1}
        self.blank, self.broken, self.fields_found = Tally(), Tally(), Counter()
        try:
            for document in documents:
                self.documents += 1
                # The bytes of the text, not of the file, which may have a byte order mark and two-character line ends.
                n = len(document.text.encode("utf-8"))
                self.bytes += n
                if n > self.longest["bytes"]:
                    self.longest = {"name": printable(document.name), "bytes": n}
                yield document
        finally:
            if self._file is not None:
                self._file.close()
            self._file = None

    def reject(self, fault: Fault) -> None:
        """Count a document that can't be read, and list it in the quarantine. UserError where the account is strict."""
        # A file "is damaged", and of a line it is said what it lacks.
        between = " " if fault.number is None and fault.error.startswith("is ") else ": "
        message = f"{fault.where}{between}{fault.error}"
        if self.strict:
            raise UserError(message)
        self._first = self._first if self.broken.counts else message
        self.broken.add(fault.reason, fault.name)
        if self.quarantine is None:
            return
        if self._file is None:
            self._file = self.quarantine.open("w", encoding="utf-8")
        row = {
            "file": fault.file,
            "line": fault.number,
            "reason": fault.reason,
            "error": fault.error,
            "text": fault.text,
        }
        # Names and texts may hold bytes that are no UTF-8 as halves of surrogate pairs: written as escapes.
        self._file.write(json.dumps(row) + "\n")
        # Whoever stops early never closes the file.
        self._file.flush()

    def fields(self) -> Read:
        """The account for a corpus's manifest."""
        rest = Tally()
        for name in self.names[self.files :]:
            rest.add(UNREAD, name)
        skipped = [entry for tally in (self.listed, self.blank, rest) for entry in tally.entries()]
        read: Read = {"files": self.files, "documents": self.documents, "bytes": self.bytes, "skipped": skipped}
        if self.documents:
            read["longest"] = self.longest
        if self.fields_found:
            read["fields"] = dict(self.fields_found)
        if n := self.broken.counts.total():
            of = n + self.documents + self.blank.counts.total()
            read["quarantined"] = {"count": n, "of": of, "error": self._first, "reasons": self.broken.entries()}
        return read

    def renewed(self, kept: Read) -> Read:
        """The account of a manifest, with what is left out now: a file that isn't read changes no corpus."""
        while_reading = [s for s in kept["skipped"] if s["reason"] in READING]
        return {**kept, "skipped": [*self.listed.entries(), *while_reading]}


def line(place: str | None, read: Read, noun: str = "document") -> str:
    """A line on what was read: "12 files, 340 documents, 1.2 MB of ../text"."""
    n, documents = read["files"], read["documents"]
    said = f"{n:,} file{'s' * (n != 1)}, {documents:,} {noun}{'s' * (documents != 1)}, {size(read['bytes'])}"
    return f"{said} of {printable(place)}" if place else said


def check_broken(read: Read, place: str, strict: bool, most: float) -> None:
    """UserError where documents are broken: any where `strict`, else more than the share `most` of all."""
    broken = read.get("quarantined")
    if broken is None or not (strict or broken["count"] > most * broken["of"]):
        return
    if broken["count"] == 1 and (strict or broken["of"] == 1):
        raise UserError(broken["error"])
    limit = "data.strict=true" if strict else f"data.broken={most:g}"
    raise UserError(
        f"{broken['error']}; {broken['count']:,} of {broken['of']:,} documents can't be read, with {limit} ({place})"
    )


def told(read: Read, place: str, folder: Path) -> list[str]:
    """Lines on what was left out, guessed, or can't be read. folder: the prepared corpus."""
    lines = [f"{place}: skipped {reasons(read['skipped'])}"] if read["skipped"] else []
    for key, n in read.get("fields", {}).items():
        files = f"{n:,} file{'s' * (n != 1)}"
        lines.append(f"{place}: the text of {files} is taken from {printable(key)}; data.field=KEY names another")
    if broken := read.get("quarantined"):
        lines.append(
            f"{place}: {broken['count']:,} of {broken['of']:,} documents can't be read and are left out: "
            f"{reasons(broken['reasons'])}; {folder / QUARANTINE} has them"
        )
    return lines


def reasons(skipped: Sequence[Skipped]) -> str:
    """A phrase on what was left out: "3: 2 of another ending (.gz 1, .csv 1), 1 empty (a.txt)"."""
    each = ", ".join(f"{s['count']:,} {s['reason']} ({_examples(s)})" for s in skipped)
    return f"{sum(s['count'] for s in skipped):,}: {each}"


def _examples(skipped: Skipped) -> str:
    if "endings" in skipped:
        shown = [f"{ending} {n:,}" for ending, n in skipped["endings"].items()]
    else:
        shown = skipped["names"]
    # Endings are all there; of names only the first few were kept.
    more = len(shown) > NAMED or ("endings" not in skipped and skipped["count"] > len(shown))
    return ", ".join(shown[:NAMED]) + (" ..." if more else "")


def printable(name: str) -> str:
    """A file's name on one line: a line break in it, or a byte that is no UTF-8, is written as an escape."""
    # A byte that is no UTF-8 is half of a surrogate pair in a name (PEP 383), which can't be printed.
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(name))


def size(n: float) -> str:
    """1234567 -> "1.2 MB"."""
    if n < 1000:
        return f"{n:.0f} byte{'s' * (n != 1)}"
    # By digits: math.log(1000, 10) is 2.9999999999999996.
    power = min(4, (len(str(int(n))) - 1) // 3)
    return f"{n / 1000**power:,.1f} {('kB', 'MB', 'GB', 'TB')[power - 1]}"


class Source(NamedTuple):
    """Documents still to be read. `stamp` changes when the files do and is cheap: no file is opened for it."""

    stamp: Any
    read: Callable[[Tick], Iterator[Document]]
    account: Account
