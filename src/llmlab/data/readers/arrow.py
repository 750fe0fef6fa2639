"""Rows of Arrow's files: .parquet, and .arrow and .feather as a file or, as `datasets` writes them, as a stream."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator
from typing import Any

from llmlab.data.readers.item import DAMAGED, NO_VALUE, NOT_UTF8, Broken, Input, Item, Unreadable, Wanted
from llmlab.errors import UserError
from llmlab.json_files import Json

ROWS = 256  # rows in memory at once
MAGIC = b"ARROW1"


def parquet(file: Input, wanted: Wanted) -> Iterator[Item]:
    """Rows of a .parquet file, of which only the wanted columns are read."""
    pa = _pyarrow()
    import pyarrow.parquet

    try:
        # Buffered and not ahead: else all of a row group, often the whole file, would be in memory.
        with pyarrow.parquet.ParquetFile(file.path, buffer_size=1 << 20, pre_buffer=False) as table:
            columns = _columns(table.schema_arrow, wanted)
            yield from _rows(pa, table.iter_batches(ROWS, columns=columns, use_threads=False))
    except (pa.ArrowException, OSError) as e:
        raise _damaged(e) from None


def arrow(file: Input, wanted: Wanted) -> Iterator[Item]:
    """Rows of an Arrow IPC file or stream, mapped and not read into memory."""
    pa = _pyarrow()
    import pyarrow.ipc

    try:
        with pa.memory_map(file.path) as source:
            if source.read(len(MAGIC)) == MAGIC:
                table = pyarrow.ipc.open_file(source)
                batches: Iterable[Any] = map(table.get_batch, range(table.num_record_batches))
            else:
                source.seek(0)
                batches = table = pyarrow.ipc.open_stream(source)
            columns = _columns(table.schema, wanted)
            yield from _rows(pa, batches if columns is None else (b.select(columns) for b in batches))
    except (pa.ArrowException, OSError) as e:
        raise _damaged(e) from None


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError:
        raise UserError(
            "data.path: to read .parquet and .arrow the package pyarrow is missing: pip install 'llmlab[tables]', or leave "
            "such files out"
        ) from None
    return pyarrow


def _damaged(e: Exception) -> Exception:
    # Of the file system, and not of what is in the file.
    if isinstance(e, OSError) and e.errno is not None:
        return e
    return Unreadable(DAMAGED, f"is damaged ({' '.join(str(e).split())[:120]})")


def _columns(schema: Any, wanted: Wanted) -> list[str] | None:
    """The columns that are read; None: all."""
    asked = wanted(schema.names)
    return [name for name in schema.names if name in asked] or None if asked is not None else None


def _rows(pa: Any, batches: Iterable[Any]) -> Iterator[Item]:
    number = 0
    for batch in batches:
        for at in range(0, batch.num_rows, ROWS):
            for value in _values(pa, batch.slice(at, ROWS)):
                number += 1
                yield Item(value, number, "row")


def _values(pa: Any, batch: Any) -> Iterator[Json | Broken]:
    try:
        # Offsets that lie outside of the data would be read as they are.
        batch.validate(full=True)
        rows = [plain(row) for row in batch.to_pylist()]
    except (pa.ArrowException, ValueError, OverflowError) as e:
        if batch.num_rows > 1:
            # One by one, so that the good ones are read.
            for i in range(batch.num_rows):
                yield from _values(pa, batch.slice(i, 1))
            return
        reason = NOT_UTF8 if "utf" in str(e).lower() else NO_VALUE
        yield Broken(reason, f"holds what is no plain value ({' '.join(str(e).split())[:120]})")
        return
    yield from rows


def plain(value: Any) -> Any:
    """A value as JSON has it: times and decimal numbers as texts. ValueError for bytes that are no UTF-8."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value)
