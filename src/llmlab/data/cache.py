"""A folder that is made once: committed by rename, with a manifest that tells a whole one from a damaged one."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypedDict, cast

from llmlab.errors import UserError
from llmlab.files import expanded, replace_atomically, sha256
from llmlab.json_files import read_json
from llmlab.ranks import rank_zero_info

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike

MANIFEST = "manifest.json"
# EDQUOT: the user's quota is used up. EFBIG: beyond `ulimit -f` (Python ignores SIGXFSZ), or 4 GB on FAT.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LEFT = re.compile(r"\.(.+)\.\w{8,32}(\.old)?")  # what `_beside` or tempfile named
UNFINISHED = "unfinished"  # the end of the name of a folder that is gone on with
KEPT = 86400.0  # seconds for which one waits for that
STALE = 60.0  # seconds after which a temporary file, written at once, is of a process that was killed
AT_ONCE = 1 << 22  # values copied at once
# Files up to this size are hashed when they are opened, at 1 GB a second; of larger ones only the size is looked at.
HASHED = 256 << 20


# POSIX locks belong to the process: it would be granted one again, and closing any descriptor of the file lets go of
# it.
_held: set[Path] = set()


class Damaged(Exception):
    """A cached folder can't be trusted; the message says why."""


class _Checked(TypedDict):
    manifest: dict[str, Any]
    sha256: str


def root() -> Path:
    """$LLMLAB_CACHE, else ~/.cache/llmlab."""
    return expanded(os.environ.get("LLMLAB_CACHE") or "~/.cache/llmlab")


def digest(value: object) -> str:
    """sha256 of plain values, written as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def open_or_make(folder: Path, make: Callable[[Path], dict[str, Any]], *, resumes: bool = False) -> dict[str, Any]:
    """The manifest of `folder`; where it is missing or damaged, `make(temporary folder)` fills it and says what it is.

    Of several processes one makes it, the others wait. One that is killed leaves nothing that looks whole. resumes: `make` goes
    on with what one that was killed left in the temporary folder.
    Raises UserError if the cache can't be written.
    """
    try:
        if folder.is_dir():
            return check(folder)
    except Damaged as e:
        rank_zero_info(f"the cache {folder} is damaged ({e}): making it anew")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.with_name(folder.name + ".lock")) as alone:
            try:
                return check(folder)  # another process was faster
            except Damaged:
                return _make(folder, make, resumes and alone)
    except OSError as e:
        raise UserError(_trouble(folder.parent, e)) from e


def _trouble(place: Path, e: OSError) -> str:
    if e.filename and not Path(os.fsdecode(e.filename)).is_relative_to(place) and e.errno not in FULL:
        return f"{os.fsdecode(e.filename)} can't be read ({e.strerror})"
    what = "is full" if e.errno in FULL else "can't be written"
    return f"the cache {place} {what} ({e.strerror or e}): set LLMLAB_CACHE to another folder"


def check(folder: Path) -> dict[str, Any]:
    """The manifest, if all files are what it says. Raises Damaged."""
    try:
        outer: _Checked = read_json(folder / MANIFEST, _Checked)
        manifest, expected = outer["manifest"], outer["sha256"]
    except (OSError, ValueError):
        raise Damaged(f"{MANIFEST} is missing or unreadable") from None
    if digest(manifest) != expected:
        raise Damaged(f"{MANIFEST} was changed")
    for name, file in manifest["files"].items():
        try:
            size = (folder / name).stat().st_size
            same = size == file["bytes"] and (size > HASHED or sha256(folder / name) == file["sha256"])
        except OSError:
            raise Damaged(f"{name} is missing or unreadable") from None
        if not same:
            raise Damaged(f"{name} was changed" if size == file["bytes"] else f"{name} is of another length")
    return manifest


def save_array(path: Path, array: np.ndarray) -> None:
    """np.save, whose bytes are all there or an OSError says how many are needed.

    numpy writes to a file past Python, and what the C library still holds when the disk is full is lost without a word.
    """
    import numpy as np

    with writing(path, array.nbytes), path.open("wb") as f:
        # numpy calls tofile where it is given a real file, and write(), in pieces, where it has only that.
        np.lib.format.write_array(cast(Any, SimpleNamespace(write=f.write)), array, allow_pickle=False)


def raw_to_npy(
    raw: Sequence[Path], to: Path, dtype: DTypeLike, wanted: DTypeLike, n: int, *, keep: bool = False
) -> None:
    """Raw values of several files as one .npy of a type of its own, without holding them all. The files are deleted, unless
    `keep`."""
    import numpy as np

    kind = np.dtype(wanted)
    with writing(to, n * kind.itemsize), to.open("wb") as written:
        about = {"descr": kind.str, "fortran_order": False, "shape": (n,)}
        np.lib.format.write_array_header_1_0(written, about)  # type: ignore[no-untyped-call]
        for file in raw:
            # No memory map: on a full disk that is a bus error.
            with file.open("rb") as read:
                while len(values := np.fromfile(read, dtype=dtype, count=AT_ONCE)):
                    written.write(values.astype(kind).tobytes())
    for file in () if keep else raw:
        file.unlink()


def write_manifest(path: Path, content: dict[str, Any]) -> None:
    """Writes {"manifest": content, "sha256": ...}, whole or not at all, and deletes stale temporary files. Raises OSError."""
    text = json.dumps({"manifest": content, "sha256": digest(content)}, indent=1, sort_keys=True) + "\n"
    # The text is of ASCII (json.dumps escapes the rest), so its length is that of the file.
    with writing(path, len(text)):
        replace_atomically(path, text)
    for old in path.parent.glob(f".{path.name}.*"):
        with suppress(OSError):
            # A fresh one is another process's, which is about to rename it.
            if time.time() - old.stat().st_mtime > STALE:
                old.unlink()


def keep(path: Path, content: dict[str, Any]) -> None:
    """`write_manifest` if that is possible; else a line that says that it isn't: the content can be computed again."""
    try:
        write_manifest(path, content)
    except OSError as e:
        rank_zero_info(
            f"{path.name} is not kept in the cache {path.parent} ({e.strerror}); it is computed anew each time"
        )


def read_checked(path: Path) -> dict[str, Any] | None:
    """The content that `write_manifest` wrote, or None if there is nothing or it is damaged."""
    try:
        outer: _Checked = read_json(path, _Checked)
    except (OSError, ValueError):
        return None
    return outer["manifest"] if digest(outer["manifest"]) == outer["sha256"] else None


@contextmanager
def writing(path: Path, n: int) -> Iterator[None]:
    """Within, an error that the disk is full says how much the file needs."""
    try:
        yield
    except OSError as e:
        if e.errno not in FULL:
            raise
        raise OSError(e.errno, f"{e.strerror}: {path.name} needs {n:,} bytes", str(path)) from e


def _make(folder: Path, make: Callable[[Path], dict[str, Any]], resumes: bool) -> dict[str, Any]:
    temporary = folder.with_name(f".{folder.name}.{UNFINISHED}") if resumes else _beside(folder)
    _clear(folder, temporary)
    temporary.mkdir(exist_ok=True)
    # Of a kill while a file was replaced: what is in the folder at the end is the corpus's.
    for old in (temporary / MANIFEST, *temporary.glob(".*")):
        old.unlink(missing_ok=True)
    keep = False
    try:
        manifest = make(temporary)
        files = sorted(p for p in temporary.iterdir() if p.is_file())
        manifest["files"] = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files}
        # As every later process reads it: tuples are lists, numbers as keys are texts.
        manifest = json.loads(json.dumps(manifest))
        write_manifest(temporary / MANIFEST, manifest)
        if folder.exists():
            # A rename replaces no folder that has files in it (ENOTEMPTY).
            os.rename(folder, temporary.with_name(temporary.name + ".old"))
        os.rename(temporary, folder)
    except KeyboardInterrupt:
        keep = resumes
        raise
    except OSError as e:
        if e.errno in FULL:
            written = sum(p.stat().st_size for p in temporary.rglob("*") if p.is_file())
            e.strerror = (
                f"{e.strerror}; {written:,} bytes were written, {shutil.disk_usage(folder.parent).free:,} are free"
            )
        raise
    finally:
        if not keep:
            shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(temporary.with_name(temporary.name + ".old"), ignore_errors=True)
    return manifest


def _clear(folder: Path, but: Path) -> None:
    """Remove what killed processes left beside `folder`, whose lock is ours, also of other folders that no one makes.

    but: what is gone on with. Others that could be gone on with are kept for a day.
    """
    for old in folder.parent.glob(".*"):
        if (named := LEFT.fullmatch(old.name)) is None or old == but:
            continue
        if old.name.endswith(f".{UNFINISHED}") and old.stat().st_mtime > time.time() - KEPT:
            continue
        lock = folder.with_name(named[1] + ".lock")
        if named[1] == folder.name or not lock.exists():
            shutil.rmtree(old, ignore_errors=True)
            continue
        with suppress(OSError):  # it is held, or this file system has no locks
            # Opening and closing a lock file of our own would let go of the lock.
            if lock not in _held:
                with lock.open("a", encoding="utf-8") as f:
                    fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(old, ignore_errors=True)


def _beside(path: Path) -> Path:
    # Not tempfile.mkdtemp: its folders are of mode 0700, and a shared cache's other users could not read them.
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


@contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Held by one process at a time, and let go by the kernel when it dies. False where there may be others."""
    # An exclusive lock needs a descriptor that is open for writing (EBADF otherwise).
    with path.open("w", encoding="utf-8") as f:
        alone = True
        try:
            fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            rank_zero_info("waiting for another process that prepares the same data")
            alone = False
            # Some network file systems have no locks: there the last rename wins, and both processes made the same.
            with suppress(OSError):
                fcntl.lockf(f, fcntl.LOCK_EX)
                alone = True
        _held.add(path)
        try:
            yield alone
        finally:
            _held.discard(path)
