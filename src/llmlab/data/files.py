"""The user's own files as a source of texts: a document each, or one for each row."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

from llmlab.data import readers
from llmlab.data.account import (
    BLANK_DOCUMENT,
    BLANK_FILE,
    NO_ROWS,
    Account,
    Document,
    Fault,
    Source,
    Tick,
    printable,
    reasons,
)
from llmlab.data.listing import File, below, one, status
from llmlab.data.readers.item import EXCERPT, Broken, Item, LeftOut
from llmlab.errors import UserError
from llmlab.json_files import Json

DEEPEST = 3  # levels of an object whose strings are offered for data.field
FIELD = "text"
# Keys under which a text is looked for, in this order, where a file has none under "text": those of the well-known data sets.
GUESSES = (
    "text", "content", "body", "document", "article", "raw_content", "page_content", "passage", "story", "markdown",
)  # fmt: skip
NO_TEXT = "without a text under its key"
HALF = "with half of a surrogate pair"


def files(path: Path, field: str, strict: bool = True, endings: tuple[str, ...] | None = None) -> Source:
    """All texts at `path`, in the order of their names. `field`: the key of a row's text, "a.b" for one inside another.
    endings: of the files that are read; None: of all formats.

    Raises UserError where there is nothing to read; what is wrong inside a file is found when it is read.
    """
    listed, account = opened(path, readers.FORMATS, strict, endings)
    # By the name and not the content: a .txt that begins with a brace is a text.
    rows = [f for f in listed if (found := readers.format_of(f.name, readers.FORMATS)) is None or found[0].rows]
    if field != FIELD and not rows:
        raise UserError(
            f"data.field={field}: it is a key of .jsonl files and other rows, and data.path={path} has none; leave it out"
        )
    stamp = [*state(path, listed), field if rows else None]
    return source(listed, account, stamp, lambda file: _documents(file, field, account))


def opened(
    path: Path, formats: tuple[readers.Format, ...], strict: bool = True, endings: tuple[str, ...] | None = None
) -> tuple[list[File], Account]:
    """The files of these formats at `path`, and the account of them. UserError where there is nothing to read."""
    account = Account(place=str(path), strict=strict)
    endings = endings or readers.endings(formats)
    if stat.S_ISDIR(status(path).st_mode):
        listed = below(path, account.listed, endings)
        if not listed:
            _nothing(path, account, formats)
    else:
        listed = [one(path)]
        if not path.name.lower().endswith(endings):
            raise UserError(
                f"data.path={printable(str(path))}: files must end in one of {readers.shown_endings(formats)}"
            )
        if not listed[0].stat.st_size:
            raise UserError(f"data.path={printable(str(path))}: the file is empty")
    account.names = [f.name for f in listed]
    return listed, account


def state(path: Path, listed: list[File]) -> list[Any]:
    """A value that changes when a file does, found without opening one."""
    # The change time too: a copy that keeps size and modification time is still seen.
    return [str(path.resolve()), [[f.name, *_state(f.stat)] for f in listed]]


def source(
    listed: list[File], account: Account, stamp: list[Any], read: Callable[[File], Iterator[Document]]
) -> Source:
    """The documents that `read` finds in each file. UserError if a file changes meanwhile."""

    def documents(tick: Tick) -> Iterator[Document]:
        done, total = 0, sum(f.stat.st_size for f in listed)
        for file in listed:
            tick(done, total)
            done += file.stat.st_size
            account.files += 1
            yield from read(file)
            _unchanged(file)

    return Source(stamp, lambda tick: account.counted(documents(tick)), account)


def good_items(
    file: File,
    formats: tuple[readers.Format, ...],
    wanted: Callable[[Sequence[str]], list[str] | None],
    account: Account,
) -> Iterator[tuple[Item, str]]:
    """(item, its document's name) of a file, but for what can't be read or isn't, which the account has then."""
    item = None
    for item in readers.items(file.path, file.name, formats, wanted):
        name = readers.label(file.name, item)
        if isinstance(item.value, LeftOut):
            account.blank.add(item.value.reason, name)
        elif isinstance(item.value, Broken):
            account.reject(fault(file, item, item.value))
        else:
            yield item, name
    if item is None:
        account.blank.add(NO_ROWS, file.name)


def fault(file: File, item: Item, broken: Broken) -> Fault:
    """The entry of a broken item in the account."""
    name, where = readers.label(file.name, item), readers.place(file.path, item)
    return Fault(name, readers.label(file.name, item._replace(number=None)), item.number, where, *broken)


def _nothing(path: Path, account: Account, formats: tuple[readers.Format, ...]) -> NoReturn:
    left_out = account.listed.entries()
    shown = printable(str(path))
    if {s["reason"] for s in left_out} == {"empty"}:
        raise UserError(f"data.path={shown}: all its files are empty")
    has = f"; skipped {reasons(left_out)}" if left_out else ""
    raise UserError(f"data.path={shown}: the folder has no file that ends in {readers.shown_endings(formats)}{has}")


def _state(about: os.stat_result) -> tuple[int, int, int]:
    return about.st_size, about.st_mtime_ns, about.st_ctime_ns


def _unchanged(file: File) -> None:
    """UserError if a file is no longer as it was listed: a corpus is kept under the state of its files."""
    try:
        # Checked after reading: a file that was appended to meanwhile was read in part only.
        same = _state(os.stat(file.path)) == _state(file.stat)
    except OSError:
        same = False
    if not same:
        raise UserError(
            f"data.path: {printable(file.path)} changed while it was read; start again when it is no longer written to"
        )


def _documents(file: File, field: str, account: Account) -> Iterator[Document]:
    key, member = None if field == FIELD else field, ""

    def wanted(columns: Sequence[str]) -> list[str] | None:
        asked = guess(columns) or FIELD if field == FIELD else field
        # A column may have a dot in its name.
        return [asked, asked.partition(".")[0]]

    for item, name in good_items(file, readers.FORMATS, wanted, account):
        if isinstance(item.value, str) and item.number is None:
            if item.value.strip():
                yield Document(name, item.value)
            else:
                account.blank.add(BLANK_FILE, name)
            continue
        if item.inside != member and field == FIELD:
            key, member = None, item.inside
        if key is None and isinstance(item.value, dict):
            # The first row decides for all of its file.
            key = _guess_in(item.value) or FIELD
            if key != FIELD:
                account.fields_found[key] += 1
        text = _text(cast("Json", item.value), key or FIELD)
        if isinstance(text, Broken):
            account.reject(fault(file, item, text))
        elif text.strip():
            yield Document(name, text)
        else:
            account.blank.add(BLANK_DOCUMENT, name)


def _guess_in(row: dict[str, Json]) -> str | None:
    texts = [k for k, v in row.items() if k == FIELD or isinstance(v, str)]
    # A null in the first row: of its key the name alone is known.
    for keys in (texts, [k for k, v in row.items() if v is None]):
        found = guess(keys)
        if found is not None and (len(keys) != 1 or len(row) == 1 or found.lower() in GUESSES):
            return found
    return None


def guess(keys: Sequence[str]) -> str | None:
    """The key of a text among the keys of a row: the first of GUESSES that is there, or the only key."""
    if FIELD in keys:
        return FIELD
    lower = {k.lower(): k for k in reversed(keys)}
    found = next((lower[g] for g in GUESSES if g in lower), None)
    return found or (keys[0] if len(keys) == 1 else None)


def _text(row: Json, field: str) -> str | Broken:
    """The text of a row."""
    text = value_of(row, field)
    if not isinstance(text, str):
        error = f'needs an object with a string under "{field}"{_instead(row, text)}'
        return Broken(NO_TEXT, error, json.dumps(row)[:EXCERPT])
    try:
        # json.loads takes half of a surrogate pair, of which tokenizers says later that "TextInputSequence must be str".
        text.encode("utf-8")
    except UnicodeEncodeError:
        error = f'"{field}" holds half of a surrogate pair (\\ud800 to \\udfff), which is no character'
        return Broken(HALF, error, json.dumps(row)[:EXCERPT])
    return text


def value_of(row: Json, field: str) -> Json:
    """The value that an object has under a key, or under "a.b" in an object inside it; None for nothing."""
    # A key may have a dot of its own.
    if isinstance(row, dict) and field in row:
        return row[field]
    for key in field.split("."):
        row = row.get(key) if isinstance(row, dict) else None
    return row


def _instead(row: Json, value: Json) -> str:
    """A phrase on what a line has in place of a text."""
    if not isinstance(row, dict):
        return f", but is {'a list' if isinstance(row, list) else 'one value'}"
    if value is not None:
        return f", but it is {'an object' if isinstance(value, dict) else json.dumps(value)[:40]}" + _offered(row)
    return _offered(row)


def _offered(row: dict[str, Json]) -> str:
    keys = list(_strings(row, "", DEEPEST))
    if not keys:
        return "; no key of it holds one"
    shown = ", ".join(printable(k)[:60] for k in keys[:8]) + (" ..." if len(keys) > 8 else "")
    return f"; strings are under {shown}: data.field=KEY names one"


def _strings(row: dict[str, Json], inside: str, levels: int) -> Iterator[str]:
    for key, value in row.items():
        if isinstance(value, str):
            yield inside + key
        elif isinstance(value, dict) and levels > 1:
            yield from _strings(value, f"{inside}{key}.", levels - 1)
