"""The fingerprint of a text, by which a run knows its own text again, and what has changed where it is another."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, cast

from llmlab.errors import UserError

NAME = "documents.txt"  # in a cached corpus: one document a line, "DIGEST NAME", in their order


class Listed(NamedTuple):
    """A document by the sha256 of its text and its name."""

    digest: str
    name: str


class OtherText(UserError):
    """The text is not the one whose fingerprint was asked for. documents: what was found."""

    def __init__(self, fingerprint: str, documents: list[Listed]):
        super().__init__(f"the text has the fingerprint {fingerprint}, which is another than the one asked for")
        self.fingerprint, self.documents = fingerprint, documents


def listed(name: str, text: bytes) -> Listed:
    """A document whose text is, in UTF-8, `text`."""
    return Listed(hashlib.sha256(text).hexdigest(), " ".join(name.split("\n")))


def normal(text: str) -> bytes:
    """A digest that texts have in common that are equal up to white space, case, and the way characters are composed."""
    # Of ASCII the composed form is the text itself.
    text = text.lower() if text.isascii() else unicodedata.normalize("NFC", text).casefold()
    return hashlib.sha256(" ".join(text.split()).encode("utf-8")).digest()[:16]


def fingerprint(documents: Iterable[Listed]) -> str:
    """sha256 over the documents in order, whatever the split and the tokenizer."""
    total = hashlib.sha256()
    for document in documents:
        total.update(bytes.fromhex(document.digest))
    return total.hexdigest()


@contextmanager
def listing(folder: Path) -> Iterator[Callable[[Listed], None]]:
    """Writes the documents that it is given into `folder`, one after the other."""
    # Names of files may hold bytes that are no UTF-8, which Python reads as lone surrogates (PEP 383).
    with (folder / NAME).open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as f:
        yield lambda document: cast(None, f.write(f"{document.digest} {document.name}\n"))


def read(folder: Path) -> list[Listed] | None:
    """The documents that `write` wrote; None where there is nothing to be read."""
    try:
        # Not splitlines, which also cuts at U+2028 and other characters that names may hold.
        lines = (folder / NAME).read_text(encoding="utf-8", errors="surrogateescape").split("\n")[:-1]
    except OSError:
        return None
    return [Listed(*line.split(" ", 1)) for line in lines if " " in line]


def changes(before: list[Listed] | int | None, now: list[Listed]) -> str:
    """A phrase on how a text differs from what it was. before: its documents, or only how many there were, if known."""
    n = f"{len(now):,} document{'s' * (len(now) != 1)}"
    if before is None:
        return f"it now has {n}"
    if isinstance(before, int):
        return f"it now has {n}, and had {before:,}" if before != len(now) else f"it has {n} as before, but others"
    old, new = Counter(d.digest for d in before), Counter(d.digest for d in now)
    # Counter's minus leaves out what is not positive.
    gone, come = old - new, new - old
    if not gone and not come:
        return f"it has the same {n} in another order"
    changed = len({d.name for d in now if d.digest in come} & {d.name for d in before if d.digest in gone})
    counts = {"changed": changed, "added": come.total() - changed, "removed": gone.total() - changed}
    said = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count > 0)
    return f"it had {len(before):,} document{'s' * (len(before) != 1)}; {said}"
