"""A folder that is made once: committed by rename, with a manifest that tells a whole one from a damaged one."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llmlab.errors import UserError

MANIFEST = "manifest.json"
HASHED = 256 << 20  # files up to this size are hashed when they are opened; of larger ones only the size is looked at


class Damaged(Exception):
    """Why a cached folder can't be trusted."""


def root() -> Path:
    """$LLMLAB_CACHE, else ~/.cache/llmlab."""
    return Path(os.environ.get("LLMLAB_CACHE") or "~/.cache/llmlab").expanduser()


def say(line: str) -> None:
    """A line to the user, once a machine whatever the number of ranks."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"llmlab: {line}", file=sys.stderr, flush=True)


def digest(value: Any) -> str:
    """sha256 of plain values, written as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def open_or_make(folder: Path, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """The manifest of `folder`; where it is missing or damaged, `make(temporary folder)` fills it and says what it is.

    Of several processes one makes it, the others wait. One that is killed leaves nothing that looks whole.
    Raises UserError if the cache can't be written.
    """
    try:
        if folder.is_dir():
            return check(folder)
    except Damaged as e:
        say(f"the cache {folder} is damaged ({e}): making it anew")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.with_name(folder.name + ".lock")):
            try:
                return check(folder)  # another process was faster
            except Damaged:
                return _make(folder, make)
    except OSError as e:
        raise UserError(
            f"the cache {folder.parent} can't be written ({e.strerror}): set LLMLAB_CACHE to another folder"
        ) from e


def check(folder: Path) -> dict[str, Any]:
    """The manifest, if all files are what it says. Raises Damaged."""
    try:
        outer = json.loads((folder / MANIFEST).read_bytes())
        manifest, expected = outer["manifest"], outer["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise Damaged(f"{MANIFEST} is missing or unreadable") from None
    if digest(manifest) != expected:
        raise Damaged(f"{MANIFEST} was changed")
    for name, file in manifest["files"].items():
        try:
            size = (folder / name).stat().st_size
            same = size == file["bytes"] and (size > HASHED or _sha256(folder / name) == file["sha256"])
        except OSError:
            raise Damaged(f"{name} is missing or unreadable") from None
        if not same:
            raise Damaged(f"{name} was changed" if size == file["bytes"] else f"{name} is of another length")
    return manifest


def write_atomically(path: Path, content: dict[str, Any]) -> None:
    """Writes {"manifest": content, "sha256": ...} under a temporary name and renames it."""
    temporary = _beside(path)
    temporary.write_text(json.dumps({"manifest": content, "sha256": digest(content)}, indent=1, sort_keys=True) + "\n")
    os.replace(temporary, path)


def read_checked(path: Path) -> dict[str, Any] | None:
    """What `write_atomically` wrote, or None if there is nothing or it is damaged."""
    try:
        outer = json.loads(path.read_bytes())
        return outer["manifest"] if digest(outer["manifest"]) == outer["sha256"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _make(folder: Path, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    for old in folder.parent.glob(f".{folder.name}.*"):  # of processes that were killed: the lock is ours
        shutil.rmtree(old, ignore_errors=True)
    temporary = _beside(folder)
    temporary.mkdir()
    try:
        manifest = make(temporary)
        files = sorted(p for p in temporary.iterdir() if p.is_file())
        manifest["files"] = {p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in files}
        manifest = json.loads(json.dumps(manifest))
        write_atomically(temporary / MANIFEST, manifest)
        if folder.exists():
            os.rename(folder, temporary.with_name(temporary.name + ".old"))
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(temporary.with_name(temporary.name + ".old"), ignore_errors=True)
    return manifest


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # not tempfile's, which nobody else may read


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Held by one process at a time, and let go by the kernel when it dies."""
    with path.open("w") as f:
        try:
            fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("waiting for another process that prepares the same data")
            with suppress(OSError):  # a file system without locks: the last rename wins, and both made the same
                fcntl.lockf(f, fcntl.LOCK_EX)
        yield


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
