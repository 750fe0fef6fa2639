"""The files below a folder of the user's: links are followed, each real folder and file once, the rest is accounted for."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import NamedTuple

from llmlab.data import saved_sets
from llmlab.data.account import ENDING, Tally, printable
from llmlab.errors import UserError

AGAIN = "read already under another name"
ABOVE = "a link to a folder that holds this one"
DANGLING = "a link to nothing"
UNREADABLE = "a folder that can't be read"
SPECIAL = "no ordinary file"


class File(NamedTuple):
    """A file to be read. `name` is the path below the folder, by which its documents are named."""

    name: str
    path: str
    stat: os.stat_result


def one(path: Path) -> File:
    """The file at `path`, a link followed. UserError for what is no ordinary file."""
    about = status(path)
    if not stat.S_ISREG(about.st_mode):
        raise UserError(f"data.path={printable(str(path))} is {kind(about.st_mode)}; give a file or a folder")
    return File(path.name, str(path), about)


def status(path: Path) -> os.stat_result:
    """`path.stat()`, a UserError that says why where there is none."""
    shown = f"data.path={printable(str(path))}"
    try:
        return path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise UserError(f"{shown} is a link to {printable(os.readlink(path))}, which is not there") from None
        raise UserError(f"{shown}: there is no such file or folder") from None
    except OSError as e:
        raise UserError(f"{shown} {_loop(e) or _unreadable(e)}") from None
    # `Path.stat` raises ValueError for a NUL in a name, where os.path.exists says that there is no such file.
    except ValueError:
        raise UserError(f"{shown} has a NUL character in it; no file has") from None


def below(folder: Path, left_out: Tally, endings: tuple[str, ...]) -> list[File]:
    """The files below a folder of one of the `endings`, sorted by name; the others are entered in `left_out`.

    What is there itself goes before links to it, so that a link never changes the name of a document. A link to a text
    that isn't there is an error, because it would be missed.
    """
    top = os.path.realpath(folder)
    walked: set[str] = set()
    files: dict[str, File] = {}
    to_files: list[File] = []
    to_folders: list[str] = []
    stack = [("", top)]
    while stack or to_folders:
        if not stack:
            # The first name by the alphabet is the one that counts, whatever order the walk met them in.
            to_folders.sort()
            name = to_folders.pop(0)
            real = os.path.realpath(folder / name)
            # Followed, it would take in all that lies around the folder.
            if real not in walked and os.path.commonpath([real, top]) == real:
                left_out.add(ABOVE, name)
                continue
            stack.append((name, real))
        name, real = stack.pop()
        # Two links may lead to one folder.
        if real in walked:
            left_out.add(AGAIN, name)
            continue
        walked.add(real)
        try:
            with os.scandir(real) as entries:
                # scandir gives names in the file system's own order, which a copy need not have.
                found = sorted(entries, key=lambda e: e.name)
        except OSError as e:
            if not name:
                raise UserError(f"data.path={printable(str(folder))} {_unreadable(e)}") from None
            left_out.add(UNREADABLE, f"{name}: {e.strerror}")
            continue
        unread = saved_sets.left_out(real, [e.name for e in found])
        for entry in found:
            at = os.path.join(name, entry.name)
            if entry.name in unread:
                left_out.add(unread[entry.name], at)
                continue
            # .git and .ipynb_checkpoints hold copies of texts that are there already.
            if entry.name.startswith("."):
                left_out.add("hidden", at)
            elif (about := _stat(entry, folder / at, at, left_out, endings)) is None:
                continue
            elif stat.S_ISDIR(about.st_mode):
                if entry.is_symlink():
                    to_folders.append(at)
                else:
                    stack.append((at, entry.path))
            elif not stat.S_ISREG(about.st_mode):
                left_out.add(SPECIAL, f"{at}: {kind(about.st_mode)}")
            elif not at.lower().endswith(endings):
                left_out.add(ENDING, at)
                # splitext: of a.tar.gz the last ending, and none of a name without a dot.
                left_out.endings[os.path.splitext(entry.name)[1].lower() or "none"] += 1
            elif not about.st_size:
                left_out.add("empty", at)
            elif entry.is_symlink():
                to_files.append(File(at, str(folder / at), about))
            else:
                files[entry.path] = File(at, str(folder / at), about)
    for file in sorted(to_files, key=lambda f: f.name):
        real = os.path.realpath(file.path)
        if real in files:
            left_out.add(AGAIN, file.name)
        else:
            files[real] = file
    return sorted(files.values(), key=lambda f: f.name)


def _stat(
    entry: os.DirEntry[str], path: Path, name: str, left_out: Tally, endings: tuple[str, ...]
) -> os.stat_result | None:
    """The status of what an entry leads to; None, and a name in `left_out`, for a link to nothing that is no text."""
    try:
        # Follows a link, and raises where it leads to nothing.
        return entry.stat()
    except OSError as e:
        shown = f"data.path: {printable(str(path))}"
        if not entry.is_symlink():
            raise UserError(f"{shown} {_unreadable(e)}") from None
        if name.lower().endswith(endings) or not os.path.splitext(entry.name)[1]:  # a text, or a folder of them
            where = f"is a link to {printable(os.readlink(entry.path))}, which is not there"
            # ENOTDIR: a link through what was a folder once and is a file now.
            if e.errno not in (errno.ENOENT, errno.ENOTDIR):
                where = _loop(e) or f"is a link that can't be followed ({e.strerror})"
            raise UserError(f"{shown} {where}; mend or remove it") from None
        left_out.add(DANGLING, name)
        return None


def _unreadable(e: OSError) -> str:
    return f"can't be read ({e.strerror})"


def _loop(e: OSError) -> str | None:
    return "is a link that leads back to itself" if e.errno == errno.ELOOP else None


def kind(mode: int) -> str:
    """The name of what is neither a file nor a folder."""
    for test, name in ((stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISDIR, "a folder")):
        if test(mode):
            return name
    return "a device"
