"""Where text comes from: documents in a fixed order.

`python_docs` and `python_code` read the sources of the standard library that every CPython carries. They are parsed,
never imported: importing all of it would run code (`antigravity`, `this`) and need a display, sockets and more.
"""

from __future__ import annotations

import ast
import json
import os
import platform
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmlab.errors import UserError

if TYPE_CHECKING:
    from llmlab.config.schema import Data

ENDINGS = (".txt", ".md", ".jsonl")
# Tests, what was installed on top, and files that were made when this Python was compiled.
NOT_LIBRARY = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "lib-dynload"}
MADE_AT_BUILD = ("config-", "_sysconfigdata")
DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

Tick = Callable[[int, int], None]


class Document(NamedTuple):
    """A text that stands for itself, and where it is from."""

    name: str
    text: str


class Source(NamedTuple):
    """Documents still to be read. `stamp` changes when the files do and is cheap: no file is opened for it."""

    stamp: Any
    read: Callable[[Tick], Iterator[Document]]


def open_source(cfg: Data) -> Source:
    """The source that `data.source` names.

    Raises UserError for an unknown name, a `data.path` that is missing, superfluous, or has nothing to read.
    """
    if cfg.source == "files":
        if not cfg.path:
            raise UserError(
                "data.path: data=files needs a file or a folder (.txt, .md, .jsonl): data.path=FOLDER_OR_FILE"
            )
        return _files(Path(cfg.path).expanduser())
    if cfg.path:
        raise UserError(f"data.path={cfg.path} has no effect with data.source={cfg.source}: add data=files")
    if cfg.source == "python_docs":
        return _library(_documentation)
    if cfg.source == "python_code":
        return _library(_code)
    raise UserError(f"data.source={cfg.source}: there is no such source (valid: python_docs, python_code, files)")


# ---------------------------------------------------------------- the standard library


def _library(read: Callable[[Path, list[str], Tick], Iterator[Document]]) -> Source:
    root = Path(sysconfig.get_path("stdlib"))
    listing = list(_listing(root, lambda name: name.endswith(".py")))
    if not listing:
        raise UserError(
            f"data.source: this Python has no sources of its library in {root}; use data=files data.path=..."
        )
    stamp = [platform.python_version(), str(root), [[name, stat.st_size, stat.st_mtime_ns] for name, stat in listing]]
    return Source(stamp, lambda tick: read(root, [name for name, _ in listing], tick))


def _listing(root: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, os.stat_result]]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in NOT_LIBRARY and not f.startswith((".", *MADE_AT_BUILD)))
        for file in sorted(files):
            if wanted(file) and not file.startswith((".", *MADE_AT_BUILD)):
                path = os.path.join(folder, file)
                yield os.path.relpath(path, root), os.stat(path)


def _code(root: Path, names: list[str], tick: Tick) -> Iterator[Document]:
    seen = set()
    for i, name in enumerate(names):
        tick(i, len(names))
        try:
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
    for i, name in enumerate([n for n in names if n == topics] + [n for n in names if n != topics]):
        tick(i, len(names))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes in old modules
            try:
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
        if (
            isinstance(node, DEFINITIONS)
            and (text := ast.get_docstring(node))
            and text not in seen
            and _encodable(text)
        ):
            seen.add(text)
            texts.append(text)
    if texts:
        yield Document(name.removesuffix(".py").replace(os.sep, "."), "\n\n".join(texts) + "\n")


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # an escape such as \ud800 in it
        return False
    return True


# ---------------------------------------------------------------- the user's files


def _files(path: Path) -> Source:
    if not path.exists():
        raise UserError(f"data.path={path}: there is no such file or folder")
    if path.is_dir():
        root, names = path, _below(path)
        if not names:
            raise UserError(f"data.path={path}: the folder has no file that ends in {', '.join(ENDINGS)}")
    else:
        root, names = path.parent, [path.name]
        if path.suffix.lower() not in ENDINGS:
            raise UserError(f"data.path={path}: files must end in one of {', '.join(ENDINGS)}")
    stats = [(name, (root / name).stat()) for name in names]
    if not any(stat.st_size for _, stat in stats):
        raise UserError(f"data.path={path}: {'the file is' if path.is_file() else 'all its files are'} empty")
    # The change time too: a copy that keeps size and modification time is still seen.
    stamp = [str(path.resolve()), [[name, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for name, s in stats]]
    sizes = [stat.st_size for _, stat in stats]

    def read(tick: Tick) -> Iterator[Document]:
        for i, name in enumerate(names):
            tick(sum(sizes[:i]), sum(sizes))
            yield from _jsonl(root / name, name) if name.lower().endswith(".jsonl") else _plain(root / name, name)

    return Source(stamp, read)


def _below(folder: Path) -> list[str]:
    found = []
    for at, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".")]
        found += [os.path.relpath(os.path.join(at, f), folder) for f in files if not f.startswith(".")]
    return sorted(f for f in found if f.lower().endswith(ENDINGS))


def _plain(path: Path, name: str) -> Iterator[Document]:
    text = _decoded(path)
    if text.strip():
        yield Document(name, text)


def _jsonl(path: Path, name: str) -> Iterator[Document]:
    # Not splitlines(): a JSON string may hold U+2028 as it is.
    for number, line in enumerate(_decoded(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"data.path: {path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as e:
            raise UserError(f"{where}: not valid JSON ({e.msg} at column {e.colno})") from None
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise UserError(f'{where}: needs an object with a string under "text"')
        if not _encodable(row["text"]):
            raise UserError(
                f'{where}: "text" holds half of a surrogate pair (\\ud800 to \\udfff), which is no character'
            )
        if row["text"].strip():
            yield Document(f"{name}:{number}", row["text"])


def _decoded(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as e:
        raise UserError(
            f"data.path: {path} is not UTF-8 (byte {e.start}); convert it, "
            f"for example: iconv -f latin1 -t utf-8 {path.name}"
        ) from None
    except OSError as e:
        raise UserError(f"data.path: {path} can't be read ({e.strerror})") from None
