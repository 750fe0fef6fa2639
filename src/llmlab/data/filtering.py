"""Filters at work: each sees the documents that those before it keep; those that it drops are counted, with examples."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import itertools
import multiprocessing
import signal
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType
from typing import Any

from llmlab import registry
from llmlab.config.spec import PartSpec
from llmlab.data.account import Document, Filtered, printable
from llmlab.errors import UserError
from llmlab.files import expanded
from llmlab.filters import Filter

Chosen = Mapping[str, PartSpec]  # by the name below `filter.`, in their order
AT_ONCE = 64  # documents whose values are asked for at once
EXAMPLES, SHOWN = 5, 80  # dropped documents that the record shows for each filter, and characters of each


class Filters:
    """The filters of a corpus, a context manager that owns the processes which compute their values.

    workers: number of these processes; 0: values are computed in this one. text_of: gives the text of a document that filters
    see. at_once: documents of a batch.
    """

    def __init__(self, chosen: Chosen, text_of: Callable[[Document], str], *, workers: int = 0, at_once: int = AT_ONCE):
        self.parts = _made(chosen)
        self.accounts: list[Filtered] = [
            {"filter": label, "seen": 0, "dropped": 0, "reasons": {}, "examples": []} for label in chosen
        ]
        self.text_of, self.at_once, self.workers = text_of, at_once, workers if chosen else 0
        if any(spec.name in {n for _, n in registry.defined()} for spec in chosen.values()):
            self.workers = 0  # a part that a notebook's cell defines is unknown to other processes
        self.pool: ProcessPoolExecutor | None = None
        if self.workers:
            # Not forked: a lock held by a thread of PyTorch or the tokenizers library would stay held in the copy.
            self.pool = ProcessPoolExecutor(self.workers, multiprocessing.get_context("spawn"), _begin, (dict(chosen),))

    def __enter__(self) -> Filters:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def kept(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Documents that all filters keep, in their order."""
        kept = iter(documents)
        for at in range(len(self.parts)):
            kept = self._kept_by(at, kept)
        return kept

    def _kept_by(self, at: int, documents: Iterator[Document]) -> Iterator[Document]:
        account, part = self.accounts[at], self.parts[at]
        reasons: Counter[str] = Counter()
        for document, text, value in self._measured(at, documents):
            account["seen"] += 1
            if (why := part.reason(value)) is None:
                yield document
                continue
            if not isinstance(why, str):
                raise UserError(f"filter.{account['filter']}: reason() must give a text or None, but gave {why!r}")
            reasons[why] += 1
            account["dropped"], account["reasons"] = reasons.total(), dict(reasons)
            if len(account["examples"]) < EXAMPLES:
                account["examples"].append({"name": printable(document.name), "reason": why, "text": text[:SHOWN]})

    def _measured(self, at: int, documents: Iterator[Document]) -> Iterator[tuple[Document, str, Any]]:
        """(document, its text, its value), in order. Up to two batches for each other process are computed ahead."""
        label, measure = self.accounts[at]["filter"], self.parts[at].measure
        waiting: deque[tuple[list[Document], list[str], Callable[[], Sequence[Any]]]] = deque()
        while batch := list(itertools.islice(documents, self.at_once)):
            texts = [self.text_of(d) for d in batch]
            found = self.pool.submit(_measure, at, texts).result if self.pool else functools.partial(measure, texts)
            waiting.append((batch, texts, found))
            if len(waiting) > 2 * self.workers:
                yield from _paired(label, *waiting.popleft())
        while waiting:
            yield from _paired(label, *waiting.popleft())

    def nothing_left(self, where: str, noun: str) -> str:
        """The error message for a corpus of which all documents were dropped."""
        by_number = sorted((a for a in self.accounts if a["dropped"]), key=lambda a: -a["dropped"])
        each = ", ".join(f"filter={a['filter']} dropped {phrase(a)}" for a in by_number)
        return f"{where}: none of its {self.accounts[0]['seen']:,} {noun}s is left: {each}"


def phrase(account: Filtered) -> str:
    """What a filter dropped: "12 (10 shorter than 200 characters, 2 longer than 9,000 characters)"."""
    if not account["dropped"]:
        return "none"
    if len(account["reasons"]) == 1:
        return f"{account['dropped']:,} ({next(iter(account['reasons']))})"
    return f"{account['dropped']:,} ({', '.join(f'{n:,} {why}' for why, n in account['reasons'].items())})"


def line(account: Filtered, noun: str) -> str:
    """A line on what a filter dropped, with its first example."""
    said = f"filter={account['filter']} dropped {phrase(account)} of {account['seen']:,} {noun}s"
    if not account["examples"]:
        return said
    first = account["examples"][0]
    return f'{said}; the first: {first["name"]} "{printable(first["text"])}"'


def _paired(
    label: str, batch: list[Document], texts: list[str], found: Callable[[], Sequence[Any]]
) -> Iterator[tuple[Document, str, Any]]:
    try:
        values = found()
    except ValueError as e:
        raise UserError(f"filter.{label}: {e}") from None
    except BrokenProcessPool:
        raise UserError(
            f"filter.{label}: a process of data.num_workers ended while it read {batch[0].name} to {batch[-1].name}, for want "
            "of memory, or of a script's line 'if __name__ == \"__main__\":'; data.num_workers=0 needs neither"
        ) from None
    if len(values) != len(batch):
        raise UserError(f"filter.{label}: measure() gave {len(values)} values for {len(batch)} texts")
    return zip(batch, texts, values, strict=True)


# ---------------------------------------------------------------- parts


def _made(chosen: Chosen) -> list[Filter]:
    made = []
    for label, spec in chosen.items():
        try:
            made.append(spec.factory()())
        except ValueError as e:
            raise UserError(f"filter.{label}: {e}") from None
    return made


_PARTS: list[Filter] = []  # the filters of a process that computes values


def _begin(chosen: Chosen) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    _PARTS[:] = _made(chosen)


def _measure(at: int, texts: Sequence[str]) -> Sequence[Any]:
    return _PARTS[at].measure(texts)


def identity(chosen: Chosen) -> list[Any]:
    """Plain values that decide what the filters keep: their order, names, options and code, and what else they read."""
    return [[label, spec.name, _options(spec), code(spec), *_libraries(spec)] for label, spec in chosen.items()]


def _options(spec: PartSpec) -> dict[str, Any]:
    """Options of a filter, a file by what is in it: it may be moved, or be named from another folder."""
    files = spec.attribute("files")
    return {key: _hash(str(value)) if key in files and value else value for key, value in spec.options.items()}


def _libraries(spec: PartSpec) -> list[list[str]]:
    """The packages that a filter needs, with their versions; one that is missing is the filter's own error."""
    return [[name, importlib.metadata.version(name)] for name in spec.attribute("libraries") if _installed(name)]


def _hash(path: str) -> str | None:
    # A file that isn't there is the filter's own error, with the option's name.
    try:
        return hashlib.sha256(expanded(path).read_bytes()).hexdigest()
    except OSError:
        return None


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def code(spec: PartSpec) -> str:
    """sha256 of a part's file and of those beside it that it imports."""
    known = registry.index()
    if (spec.slot, spec.name) not in known:
        spec.factory()  # raises an error that says why there is none
    entry = known[spec.slot, spec.name]
    if not entry.path.is_file():  # defined in a notebook's cell
        try:
            source = inspect.getsource(entry.cls) if entry.cls else ""
        except (OSError, TypeError):
            source = uuid.uuid4().hex  # the code is unknown, so each process prepares the corpus anew
        return hashlib.sha256(source.encode()).hexdigest()
    total = hashlib.sha256()
    for file in sorted(_with_imports(entry.path, entry.module.rpartition(".")[0])):
        total.update(file.read_bytes())
    return total.hexdigest()


def _with_imports(first: Path, package: str) -> set[Path]:
    """A file and those in its folder that it imports, directly or by way of others."""
    found, left = {first}, [first]
    while left:
        for node in ast.walk(ast.parse(left.pop().read_bytes())):
            if isinstance(node, ast.ImportFrom):
                names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)] if node.module else []
                names += [a.name for a in node.names] if node.level and not node.module else []
            else:
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                beside = first.parent / (name.removeprefix(f"{package}.").replace(".", "/") + ".py")
                if beside.is_file() and beside not in found:
                    found.add(beside)
                    left.append(beside)
    return found
