"""Paths as they are typed; and writing small files so that a reader sees the old content or the new, never half of it."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from llmlab.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

LEFT = re.compile(r"\..+\.tmp-\d+(-\w+)?")  # the names of temporary files, those of older versions too


def write_atomic(path: Path, text: str | bytes) -> None:
    """`replace_atomically`; UserError, with the OSError as its cause, if that fails."""
    try:
        replace_atomically(path, text)
    except OSError as e:
        raise UserError(f"{path} could not be written: {e.strerror}") from e


def replace_atomically(path: Path, text: str | bytes) -> None:
    """Write to a hidden file beside `path`, fsync, rename. Raises OSError, and leaves the old file as it was."""
    # Process ids are unique on one machine only, and a cache or a run folder may be shared by several.
    # Beside the file: a rename is atomic within one file system only.
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        with open(temporary, "wb") as f:
            f.write(text.encode("utf-8") if isinstance(text, str) else text)
            # First: fsync knows nothing of what Python still buffers.
            f.flush()
            # Else a crash soon after the rename can leave an empty file on ext4 and XFS.
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError:
        # A file system that can't be written can't be deleted from either.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a .safetensors file, as readable for others as any new file is. Raises what safetensors raises."""
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    # Views with gaps are refused, and transformers before 5 refused a file without this metadata. One key of them only:
    # safetensors 0.8 writes them in the order of a hash map, another in each call, so that of two keys the same weights
    # would have several sha256.
    save_file({name: t.contiguous() for name, t in tensors.items()}, path, metadata={"format": "pt"})
    # safetensors 0.8 renames a temporary file of mode 0600 over the path, whatever the umask is and what was there.
    path.chmod(mode)


def write_over(path: Path, text: str) -> bool:
    """Write into a file that is there and no smaller, which needs no space on a full disk; whether it was done. It keeps
    its size: white space follows the text.

    A crash meanwhile leaves it torn, so it is for what can't be written otherwise.
    """
    content = text.encode("utf-8")
    try:
        # Not "wb", which would give the space back first, and another program would have it.
        with open(path, "r+b") as f:
            size = os.fstat(f.fileno()).st_size
            if len(content) > size:
                return False
            f.write(content + b" " * (size - len(content) - 1) + b"\n" * (size > len(content)))  # room for the next one
            f.flush()
            os.fsync(f.fileno())
        return True
    except OSError:
        return False


def sweep(folder: Path, but: tuple[str, ...] = ()) -> None:
    """Delete what killed processes left half-written in a folder that is this process's alone, `but` for these files."""
    for path in folder.glob(".*.tmp-*"):
        if LEFT.fullmatch(path.name) and not path.name.startswith(tuple(f".{name}.tmp-" for name in but)):
            with suppress(OSError):
                path.unlink()


def expanded(path: str | Path) -> Path:
    """The path with ~ or ~USER in front replaced by that home; as it was typed where there is no such user, as in a shell."""
    # Not Path.expanduser, which raises RuntimeError for a user that is not there.
    return Path(os.path.expanduser(path))


def absolute(path: str | Path) -> str:
    """The path as it is meant from this folder, expanded. Links stay as they were typed, and so does a `..` behind one."""
    typed = os.path.join(os.getcwd(), expanded(path))
    plain = os.path.abspath(typed)
    try:
        # abspath strikes out `link/..`, but for open() that is the folder above the one that the link leads to.
        same = os.path.realpath(plain) == os.path.realpath(typed)
    except ValueError:  # a NUL in a name
        same = True
    return plain if same else typed


def sha256(path: Path) -> str:
    with open(path, "rb") as f:
        # In pieces: a checkpoint may be larger than the memory.
        return hashlib.file_digest(f, "sha256").hexdigest()
