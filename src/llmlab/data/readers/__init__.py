"""Readers of files by the ending of their name, each plain or compressed: a format is one row of `FORMATS`.

Files are read as streams: what is in memory is one document, or a few hundred rows of a table, whatever the file's size.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple, cast

from llmlab.data.account import HIDDEN_MEMBER, OTHER_MEMBER, printable
from llmlab.data.readers import arrow, json_rows, tables, texts
from llmlab.data.readers.item import DAMAGED, Broken, Input, Item, LeftOut, Read, Unreadable, Wanted
from llmlab.errors import UserError

__all__ = ["FORMATS", "ROWS", "Broken", "Item", "LeftOut", "endings", "format_of", "items", "shown_endings"]


class Format(NamedTuple):
    """A kind of file. `rows`: it holds objects, which records are made of; else it is one text. `packed`: it may be
    compressed by another program, as it needs no jumps."""

    endings: tuple[str, ...]
    read: Read
    rows: bool
    packed: bool = True


FORMATS = (
    Format((".txt",), texts.plain, False),
    Format((".md", ".markdown"), texts.plain, False),
    Format((".jsonl", ".ndjson"), json_rows.json_lines, True),
    Format((".json",), json_rows.json_rows, True),
    Format((".csv",), tables.comma_separated, True),
    Format((".tsv",), tables.tab_separated, True),
    Format((".parquet",), arrow.parquet, True, packed=False),
    Format((".arrow", ".feather"), arrow.arrow, True, packed=False),
    Format((".rst",), texts.plain, False),
    Format((".html", ".htm"), texts.html, False),
)
ROWS = tuple(f for f in FORMATS if f.rows)
ARCHIVE = ".zip"


def _zstd(path: str) -> IO[bytes]:
    try:
        import pyarrow
    except ImportError:
        raise UserError(
            f"data.path: to read {printable(path)} the package pyarrow is missing: pip install 'llmlab[tables]'"
        ) from None
    return cast("IO[bytes]", pyarrow.input_stream(path, compression="zstd"))


COMPRESSIONS: dict[str, Callable[[str], Any]] = {
    "": io.FileIO,
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _zstd,
}
# Errors of damaged data, beside OSErrors that have no number.
DAMAGES = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError)


def endings(formats: tuple[Format, ...]) -> tuple[str, ...]:
    """Endings of the names of files that these formats read, compressed ones among them."""
    every = [e + c for f in formats for e in f.endings for c in COMPRESSIONS if f.packed or not c]
    return (*every, ARCHIVE)


def shown_endings(formats: tuple[Format, ...]) -> str:
    """The endings as an error names them: ".txt, .md, ... (also .gz, .bz2, .xz, .zst), .zip"."""
    return (
        f"{', '.join(e for f in formats for e in f.endings[:1])} (also {', '.join(list(COMPRESSIONS)[1:])}), {ARCHIVE}"
    )


def format_of(name: str, formats: tuple[Format, ...]) -> tuple[Format, str] | None:
    """The format of a file by its name, and the ending of its compression; None for another file."""
    name = name.lower()
    for compression in COMPRESSIONS:
        for format in formats:
            if name.endswith(tuple(e + compression for e in format.endings)) and (format.packed or not compression):
                return format, compression
    return None


def items(path: str, name: str, formats: tuple[Format, ...], wanted: Wanted) -> Iterator[Item]:
    """All items of a file. `wanted`: the columns of a table that are read. What is broken is an item too.

    Raises UserError where the file can't be opened or a package is missing.
    """
    found = format_of(name, formats)
    try:
        if found is None:
            yield from _archive(path, formats, wanted)
        else:
            format, compression = found
            opened = COMPRESSIONS[compression]
            yield from _read(format, Input(lambda: opened(path), None if compression else path), wanted, "")
    except OSError as e:
        raise UserError(f"data.path: {printable(path)} can't be read ({e.strerror or e})") from None


def _read(format: Format, file: Input, wanted: Wanted, inside: str) -> Iterator[Item]:
    number, unit = 0, "line"
    try:
        for item in format.read(file, wanted):
            number, unit = item.number or 0, item.unit
            yield item._replace(inside=inside)
    except Unreadable as e:
        yield Item(e.broken, e.number, unit if e.number else "line", inside)
    except (OSError, *DAMAGES) as e:
        # Errors of the file system have a number, those of bz2, gzip and pyarrow about what they decompress have none.
        if isinstance(e, OSError) and e.errno is not None:
            raise
        behind = f" behind {unit} {number}" if number else ""
        yield Item(Broken(DAMAGED, f"is damaged{behind} ({' '.join(str(e).split())[:120]})"), None, unit, inside)


def _archive(path: str, formats: tuple[Format, ...], wanted: Wanted) -> Iterator[Item]:
    """The items of the files in a .zip, in the order of their names."""
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as e:
        yield Item(Broken(DAMAGED, f"is damaged ({e})"))
        return
    with archive:
        for about in sorted(archive.infolist(), key=lambda a: a.filename):
            name = about.filename
            if about.is_dir():
                continue
            # macOS packs a second, hidden file beside each.
            if any(part.startswith((".", "__MACOSX")) for part in name.split("/")):
                yield Item(LeftOut(HIDDEN_MEMBER), inside=name)
                continue
            found = format_of(name, tuple(f for f in formats if f.packed))
            if found is None or found[1]:
                yield Item(LeftOut(OTHER_MEMBER), inside=name)
            elif about.flag_bits & 1:
                yield Item(Broken(DAMAGED, "is encrypted"), inside=name)
            else:
                yield from _read(found[0], Input(lambda a=about: archive.open(a), None), wanted, name)  # type: ignore[misc]


def label(name: str, item: Item) -> str:
    """The name of a document: its file, the one in an archive, and its number."""
    file = os.path.join(name, item.inside) if item.inside else name
    return file if item.number is None else f"{file}:{item.number}"


def place(path: str, item: Item) -> str:
    """The place of an item, with which an error begins."""
    file = printable(os.path.join(path, item.inside) if item.inside else path)
    return f"data.path: {file}" + ("" if item.number is None else f", {item.unit} {item.number}")
