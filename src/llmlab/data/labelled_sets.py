"""Small sets of labelled texts that have a name: docstrings that every CPython carries, and what `llmlab fetch` brings."""

from __future__ import annotations

import ast
import os
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from llmlab.data import cache
from llmlab.data.library import encodable
from llmlab.data.record_files import Record
from llmlab.errors import UserError

FOLDER = "labelled"  # in the cache: NAME.jsonl of each set that was fetched
FILE = "records.jsonl"
# Packages of the standard library whose docstrings are about different things, as their users would say.
PACKAGES = ("asyncio", "email", "importlib", "logging", "multiprocessing", "tkinter", "unittest", "xml")
MOST, SHORTEST = 100, 60  # docstrings of a package; characters of one


class LabelledSet(NamedTuple):
    """about: what a text and its label are. fetched: it comes by `llmlab fetch`, not with Python."""

    name: str
    about: str
    fetched: bool


SETS = {
    s.name: s
    for s in (
        LabelledSet("docstrings", "docstrings of this Python's library, by their package", False),
        LabelledSet("brown", "500 documents of American English of 1961, by their genre (15)", True),
    )
}


def folder(name: str) -> Path:
    return cache.root() / FOLDER / name


def records(name: str) -> list[Record]:
    """The records of the set that has this name. UserError where it has to be fetched first."""
    if not SETS[name].fetched:
        return list(_docstrings())
    from llmlab.data.record_files import records as of_file
    from llmlab.json_files import loads
    from llmlab.record_kinds import KINDS

    try:
        cache.check(folder(name))
    except cache.Damaged:
        raise UserError(f"data={name} is not in the cache, or no longer whole; llmlab fetch {name} brings it") from None
    source = of_file(folder(name) / FILE, KINDS["labelled"], {})
    return [loads(d.text, d.name) for d in source.read(lambda done, total: None)]


def _docstrings() -> Iterator[Record]:
    root = Path(sysconfig.get_path("stdlib"))
    for package in PACKAGES:
        texts: dict[str, None] = {}
        # Sorted: glob gives the order of the file system.
        for file in sorted((root / package).rglob("*.py")):
            if "test" not in file.relative_to(root).parts and len(texts) < MOST:
                texts |= dict.fromkeys(_of(file))
        for text in list(texts)[:MOST]:
            yield {"text": text, "label": package}


def _of(file: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of invalid escapes in old modules
        try:
            tree = ast.parse(file.read_bytes(), os.fspath(file))
        except SyntaxError:
            return
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node) or ""
            if len(text) >= SHORTEST and encodable(text):
                yield text
