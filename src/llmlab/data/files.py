"""The user's own files as a source: plain texts, a document each, and JSON lines, a document a line."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from llmlab.data.account import BLANK_DOCUMENT, BLANK_FILE, Account, Document, Source, Tick, printable, reasons
from llmlab.data.listing import ENDINGS, File, below, one, status
from llmlab.errors import UserError
from llmlab.json_files import Json, json_lines, loads

DEEPEST = 3  # levels of an object whose strings are offered for data.field


def files(path: Path, field: str) -> Source:
    """All texts at `path`, in the order of their names. `field`: the key of a line's text, "a.b" for one inside another.

    Raises UserError where there is nothing to read; what is wrong inside a file is raised when it is read.
    """
    listed, account = opened(path, ENDINGS)
    # By the name and not the content: a .txt that begins with a brace is a text.
    lines = {f.name for f in listed if f.name.lower().endswith(".jsonl")}
    if field != "text" and not lines:
        raise UserError(f"data.field={field}: it is a key of .jsonl files, and data.path={path} has none; leave it out")
    stamp = [*state(path, listed), field if lines else None]

    def read(file: File) -> Iterator[Document]:
        return _jsonl(file, field, account) if file.name in lines else _plain(file, account)

    return source(listed, account, stamp, read)


def opened(path: Path, endings: tuple[str, ...]) -> tuple[list[File], Account]:
    """The files of one of the `endings` at `path`, and the account of them. UserError where there is nothing to read."""
    account = Account(place=str(path))
    if stat.S_ISDIR(status(path).st_mode):
        listed = below(path, account.listed, endings)
        if not listed:
            _nothing(path, account, endings)
    else:
        listed = [one(path)]
        if not path.name.lower().endswith(endings):
            raise UserError(f"data.path={printable(str(path))}: files must end in one of {', '.join(endings)}")
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


def _nothing(path: Path, account: Account, endings: tuple[str, ...]) -> NoReturn:
    left_out = account.listed.entries()
    shown = printable(str(path))
    if {s["reason"] for s in left_out} == {"empty"}:
        raise UserError(f"data.path={shown}: all its files are empty")
    has = f"; skipped {reasons(left_out)}" if left_out else ""
    raise UserError(f"data.path={shown}: the folder has no file that ends in {', '.join(endings)}{has}")


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


def _plain(file: File, account: Account) -> Iterator[Document]:
    text = decoded(file.path)
    if text.strip():
        yield Document(file.name, text)
    else:
        account.blank.add(BLANK_FILE, file.name)


def _jsonl(file: File, field: str, account: Account) -> Iterator[Document]:
    for number, line in lines_of(file.path):
        text = _text(line, field, f"data.path: {printable(file.path)}, line {number}")
        if text.strip():
            yield Document(f"{file.name}:{number}", text)
        else:
            account.blank.add(BLANK_DOCUMENT, f"{file.name}:{number}")


def lines_of(path: str) -> Iterator[tuple[int, str]]:
    """The numbered lines of a .jsonl file."""
    try:
        with open(path, encoding="utf-8", newline=None) as f:
            yield from json_lines(f)
    # The error's position counts from the reader's buffer; decoding the whole file gives that in the file.
    except UnicodeDecodeError:
        decoded(path)
        raise
    except OSError as e:
        raise _unreadable(path, e) from None


def _text(line: str, field: str, where: str) -> str:
    """The text of a line of JSON. UserError begins with `where`."""
    row = loads(line, where)
    text = value_of(row, field)
    if not isinstance(text, str):
        raise UserError(f'{where}: needs an object with a string under "{field}"{_instead(row, text)}')
    try:
        # json.loads takes half of a surrogate pair, of which tokenizers says later that "TextInputSequence must be str".
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(
            f'{where}: "{field}" holds half of a surrogate pair (\\ud800 to \\udfff), which is no character'
        ) from None
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


def decoded(path: str) -> str:
    """A file's text in UTF-8 without a byte order mark in front."""
    try:
        data = Path(path).read_bytes()
        # Not "utf-8-sig": the positions of its errors count from behind the mark.
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as e:
        # Windows PowerShell 5 writes UTF-16 with a mark by `>`.
        coding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin1"
        raise UserError(
            f"data.path: {printable(path)} is not UTF-8 (byte {e.start}); convert it, "
            f"for example: iconv -f {coding} -t utf-8 {printable(Path(path).name)}"
        ) from None
    except OSError as e:
        raise _unreadable(path, e) from None


def _unreadable(path: str, e: OSError) -> UserError:
    return UserError(f"data.path: {printable(path)} can't be read ({e.strerror})")
