"""Text that every CPython carries: the sources of its standard library, and the documentation in them.

They are parsed, never imported: importing all of them would run code (`antigravity`, `this`) and need a display, sockets
and more.
"""

from __future__ import annotations

import ast
import os
import platform
import stat
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from llmlab.data.account import Account, Document, Source, Tick
from llmlab.errors import UserError

# Tests, what was installed on top, and files that were made when this Python was compiled.
NOT_LIBRARY = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "lib-dynload"}
MADE_AT_BUILD = ("config-", "_sysconfigdata")
DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def documentation() -> Source:
    """The topics of `help()` and the docstrings of each module."""
    return _library(_documentation)


def code() -> Source:
    """Each module's source."""
    return _library(_code)


def _library(read: Callable[[Path, list[str], Tick], Iterator[Document]]) -> Source:
    root = Path(sysconfig.get_path("stdlib"))
    listing = list(_listing(root, lambda name: name.endswith(".py")))
    if not listing:
        raise UserError(
            f"data.source: this Python has no sources of its library in {root}; use data=files data.path=..."
        )
    # The version too: distributions clamp the times of a package's files to one date.
    stamp = [platform.python_version(), str(root), [[name, s.st_size, s.st_mtime_ns] for name, s in listing]]
    account = Account()

    def counted(tick: Tick) -> Iterator[Document]:
        account.files = len(listing)
        yield from read(root, [name for name, _ in listing], tick)

    return Source(stamp, lambda tick: account.counted(counted(tick)), account)


def _listing(root: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, os.stat_result]]:
    for folder, folders, files in os.walk(root):
        # In place: os.walk goes into what is left of its own list.
        folders[:] = sorted(f for f in folders if f not in NOT_LIBRARY and not f.startswith((".", *MADE_AT_BUILD)))
        for file in sorted(files):
            if wanted(file) and not file.startswith((".", *MADE_AT_BUILD)):
                path = os.path.join(folder, file)
                with suppress(OSError):  # a link to nothing
                    if stat.S_ISREG((about := os.stat(path)).st_mode):
                        yield os.path.relpath(path, root), about


def _code(root: Path, names: list[str], tick: Tick) -> Iterator[Document]:
    seen = set()
    for i, name in enumerate(names):
        tick(i, len(names))
        try:
            # Bytes: text mode would turn line ends, and a coding line in the file is not looked at.
            text = (root / name).read_bytes().decode("utf-8")
        except UnicodeDecodeError:  # the few files in Latin-1
            continue
        if text.strip() and text not in seen:
            seen.add(text)
            yield Document(name, text)


def _documentation(root: Path, names: list[str], tick: Tick) -> Iterator[Document]:
    """The topics of `help()`, then each module's docstrings as one document.

    Each text is taken once. A document is a module, not a docstring: its classes and functions are described in nearly
    the same words, and held-out docstrings of modules that were trained on would measure memory.
    """
    topics = os.path.join("pydoc_data", "topics.py")
    seen: set[str] = set()
    # The topics first: what a docstring repeats of them is left out there, and they stay whole.
    for i, name in enumerate([n for n in names if n == topics] + [n for n in names if n != topics]):
        tick(i, len(names))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes in old modules
            try:
                # Bytes: ast then heeds the file's own coding line.
                tree = ast.parse((root / name).read_bytes())
            except SyntaxError:
                continue
        yield from _topics(tree, seen) if name == topics else _docstrings(name, tree, seen)


def _topics(tree: ast.Module, seen: set[str]) -> Iterator[Document]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for key, text in sorted(ast.literal_eval(node.value).items()):
                if text not in seen:
                    seen.add(text)
                    yield Document(f"topics/{key}", text)


def _docstrings(name: str, tree: ast.Module, seen: set[str]) -> Iterator[Document]:
    texts = []
    for node in ast.walk(tree):
        if isinstance(node, DEFINITIONS) and (text := ast.get_docstring(node)) and text not in seen and encodable(text):
            seen.add(text)
            texts.append(text)
    if texts:
        yield Document(name.removesuffix(".py").replace(os.sep, "."), "\n\n".join(texts) + "\n")


def encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # an escape such as \ud800 in it
        return False
    return True
