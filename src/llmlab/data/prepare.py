"""From text to two streams of token ids on disk: read, split, tokenize, once for each choice of data and tokenizer."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from llmlab.data import cache, fingerprint, ngram
from llmlab.data.fingerprint import OtherText
from llmlab.data.sources import Document, Source, open_source
from llmlab.data.tokenizer import BESIDE, FILE, SPECIAL, Tokenizer, ends_nothing, make
from llmlab.data.windows import Stream
from llmlab.errors import UserError

if TYPE_CHECKING:
    from llmlab.config import schema
    from llmlab.slots import Vocabulary

PARTS = ("train", "validation")
NGRAM_TOKENS = 20_000_000  # training tokens that the n-gram models count at most


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus, memory-mapped.

    `manifest` has what is known without opening anything else: fingerprint (sha256 over the documents in order,
    whatever the split and the tokenizer), documents, bytes and tokens by part, the vocabulary, how it was split.
    """

    folder: Path
    manifest: dict[str, Any]
    train: Stream
    validation: Stream

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    @property
    def tokens(self) -> int:
        """Of both parts together."""
        return len(self.train) + len(self.validation)

    @property
    def validation_bytes(self) -> int:
        """Bytes of the held-out text in UTF-8."""
        return self.manifest["bytes"]["validation"]

    @property
    def vocabulary(self) -> Vocabulary:
        from llmlab.slots import Vocabulary

        return Vocabulary(self.manifest["vocab_size"], self.manifest["special"])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.folder)

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """(V,) int64: bytes of text that each id stands for, 0 for special ones."""
        return np.load(self.folder / "token_bytes.npy")

    def ngram(self, orders: Sequence[int] = (2, 3)) -> dict[int, float]:
        """Bits per byte of the validation part under Kneser-Ney models of the training part; computed once, then kept.

        They count the first 20 million training tokens at most, and that is said.
        """
        file = self.folder / "ngram.json"
        known = cache.read_checked(file) or {}
        missing = [n for n in orders if str(n) not in known]
        if missing:
            if len(self.train) > NGRAM_TOKENS:
                cache.say(f"the n-gram models count the first {NGRAM_TOKENS:,} of {len(self.train):,} training tokens")
            found = ngram.kneser_ney(
                self.train.tokens[:NGRAM_TOKENS], self.validation.tokens, self.token_bytes, missing
            )
            known |= {str(n): bits for n, bits in found.items()}
            with suppress(OSError):  # a full disk: they are counted again next time
                cache.write_atomically(file, known)
        return {n: known[str(n)] for n in orders}


def prepare(
    data: schema.Data,
    tokenizer: schema.Tokenizer,
    special: tuple[str, ...] = (),
    *,
    whole: bool = False,
    home: Path | None = None,
    text: str | None = None,
) -> Corpus:
    """The corpus that `data` and `tokenizer` name, from the cache or made now.

    `special`: names of the special tokens that an objective needs. BPE and file tokenizers have eos besides, and so
    have characters where there is more than one document: it ends each document. A corpus of one document has none.
    `whole`: nothing is held out, the training part is all of the text.
    `home`: a run folder, whose tokenizer it must be: where that of `tokenizer` would be another, none is learnt.
    `text`: the fingerprint that it must have; OtherText, before anything is tokenized, where it has another.

    Raises UserError for text that can't be read and for a part that is too short for one window of `data.seq_len`.
    """
    if not 0 < data.validation < 1:
        raise UserError(f"data.validation={data.validation}: must be a share between 0 and 1")
    if data.split not in ("document", "position"):
        raise UserError(f"data.split={data.split}: there is no such split (valid: document, position)")
    if data.max_documents is not None and data.max_documents < 1:
        raise UserError(f"data.max_documents={data.max_documents}: must be at least 1")
    if whole:
        data = replace(data, split="none")
    source = open_source(data)
    folder = _place(data, tokenizer, special, source)
    if home is not None and not same_tokenizer(folder, home):
        tokenizer = replace(tokenizer, kind="file", path=str(home))
        folder = _place(data, tokenizer, special, source)
    manifest = cache.open_or_make(folder, lambda at: _make(at, data, tokenizer, special, source, text))
    if text not in (None, manifest["fingerprint"]):
        raise OtherText(manifest["fingerprint"], fingerprint.read(folder) or [])
    for note in manifest["notes"]:
        cache.say(note)
    parts = {part: Stream.open(folder / f"{part}.npy", folder / f"{part}_starts.npy") for part in PARTS}
    for part, stream in parts.items():
        if len(stream) <= data.seq_len and not (whole and part == "validation"):
            raise UserError(
                f"data.seq_len={data.seq_len}: the {part} part of the corpus has {len(stream):,} tokens, too few for a "
                f"window of {data.seq_len + 1:,}: it needs more text, a smaller data.seq_len or another data.validation"
            )
    return Corpus(folder, manifest, **parts)


def _place(data: schema.Data, tokenizer: schema.Tokenizer, special: tuple[str, ...], source: Source) -> Path:
    """The folder of a corpus in the cache, by all that decides what is in it."""
    choice = {
        "code": _code(),
        "data": [data.source, data.validation, data.split, data.max_documents],
        "tokenizer": [
            tokenizer.kind,
            tokenizer.vocab_size if tokenizer.kind == "bpe" else None,
            _stamp(tokenizer.path),
        ],
        "special": sorted(set(special)),
        "source": source.stamp,
        "libraries": [importlib.metadata.version("tokenizers"), np.__version__],
    }
    return cache.root() / "corpora" / cache.digest(choice)[:24]


def cached(data: schema.Data, tokenizer: schema.Tokenizer, special: tuple[str, ...] = ()) -> Path | None:
    """The folder of a corpus that was prepared before and is sound, of the files as they are now; None without one."""
    try:
        folder = _place(data, tokenizer, special, open_source(data))
        cache.check(folder)
    except (UserError, OSError, cache.Damaged):
        return None
    return folder


def same_tokenizer(folder: Path, other: Path) -> bool:
    """Whether the tokenizers that two folders hold are the same, byte for byte."""
    try:
        return all((folder / n).read_bytes() == (other / n).read_bytes() for n in (FILE, SPECIAL))
    except OSError:
        return False


def _code() -> str:
    """sha256 of the modules that decide what is in a cached corpus: it is made anew when one of them changes."""
    files = [Path(__file__).with_name(f"{name}.py") for name in ("prepare", "sources", "tokenizer", "ngram")]
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()


def _stamp(path: str | None) -> Any:
    if not path:
        return None
    file = Path(path).expanduser()
    home = file if file.is_dir() else file.parent
    if (home / SPECIAL).is_file():  # of a run, of which there may be copies
        return [hashlib.sha256((home / n).read_bytes()).hexdigest() for n in (FILE, SPECIAL) if (home / n).is_file()]
    stats = [p.stat() for p in (file, *(home / n for n in ("tokenizer.json", *BESIDE))) if p.is_file()]
    return [str(file.resolve()), [[s.st_size, s.st_mtime_ns, s.st_ctime_ns] for s in stats]]


# ---------------------------------------------------------------- the work


class _Piece:
    """A stretch of one document; `ends` where the document does."""

    def __init__(self, text: str, ends: bool):
        self.text, self.ends = text, ends


def _make(
    folder: Path,
    data: schema.Data,
    cfg: schema.Tokenizer,
    special: tuple[str, ...],
    source: Source,
    wanted: str | None,
) -> dict[str, Any]:
    with _progress() as bar:
        documents = []
        for document in source.read(lambda done, total: bar("reading", done, total)):
            documents.append(document)
            if len(documents) == data.max_documents:
                break
        if not documents:
            raise UserError(f"data.path={data.path}: there is no text in it, only white space")
        listed = fingerprint.listed(documents)
        if wanted not in (None, found := fingerprint.fingerprint(listed)):
            raise OtherText(found, listed)
        fingerprint.write(folder, listed)
        parts, split = _split(documents, data)
        notes = []
        if split != data.split:
            notes.append(
                f"no whole document of {len(documents)} falls on each side of data.split=document: "
                f"the last {data.validation:.0%} of the text is held out instead (data.split=position)"
            )
        bar("learning the tokenizer", None, None)
        eos = (cfg.kind != "char" or len(documents) > 1) and not ends_nothing(cfg)
        names = ("eos",) * eos + tuple(sorted(set(special) - ({"eos"} if eos else set())))
        train, validation = ([p.text for p in parts[part]] for part in PARTS)
        tokenizer = make(cfg, train, validation, names)
        end = tokenizer.special.get("eos") if len(documents) > 1 else None
        if end is None and len(documents) > 1:
            notes.append("the tokenizer has no token that ends a document: one follows the other without any")
        size = tokenizer.vocab_size
        dtype = np.uint16 if size <= 1 << 16 else np.uint32
        total = sum(len(p.text) for pieces in parts.values() for p in pieces)
        done, tokens = 0, {}
        for part, pieces in parts.items():
            with (folder / "raw").open("wb") as raw:
                starts, at = [], 0
                for piece, ids in zip(pieces, tokenizer.encode_all(p.text for p in pieces), strict=True):
                    if piece.ends and end is not None:
                        ids = np.append(ids, end)
                    if not len(ids):
                        continue
                    raw.write(ids.astype(dtype).tobytes())  # tofile's own buffer loses the word of a full disk
                    starts.append(at)
                    at += len(ids)
                    done += len(piece.text)
                    bar("tokenizing", done, total)
            tokens[part] = at
            _to_npy(folder / "raw", folder / f"{part}.npy", dtype, at)
            np.save(folder / f"{part}_starts.npy", np.array(starts, dtype=np.int64))
        np.save(folder / "token_bytes.npy", tokenizer.token_bytes())
        tokenizer.save(folder)
    return {
        "fingerprint": found,
        "source": data.source,
        "split": split,
        "documents": {part: len(pieces) for part, pieces in parts.items()},
        "bytes": {part: sum(len(p.text.encode("utf-8")) for p in pieces) for part, pieces in parts.items()},
        "tokens": tokens,
        "vocab_size": size,
        "special": tokenizer.special,
        "notes": notes,
    }


def _to_npy(raw: Path, to: Path, dtype: type, n: int) -> None:
    if n:
        np.save(to, np.memmap(raw, dtype=dtype, mode="r", shape=(n,)))
    else:
        np.save(to, np.zeros(0, dtype=dtype))
    raw.unlink()


def _split(documents: Sequence[Document], data: schema.Data) -> tuple[dict[str, list[_Piece]], str]:
    """Whole documents by a hash of their text, or all text after a share of its characters.

    By hash a document stays on its side whatever else is in the corpus. Where that leaves one side empty (a corpus of
    one file) the split is by position.
    """
    if data.split == "none":
        return {"train": [_Piece(d.text, True) for d in documents], "validation": []}, "none"
    if data.split == "document":
        parts: dict[str, list[_Piece]] = {part: [] for part in PARTS}
        for document in documents:
            place = int.from_bytes(hashlib.sha256(document.text.encode("utf-8")).digest()[:8], "big") / 2**64
            parts["validation" if place < data.validation else "train"].append(_Piece(document.text, True))
        if all(parts.values()):
            return parts, "document"
    cut = int(sum(len(d.text) for d in documents) * (1 - data.validation))
    parts = {part: [] for part in PARTS}
    at = 0
    for document in documents:
        here = min(max(cut - at, 0), len(document.text))
        if here:
            parts["train"].append(_Piece(document.text[:here], here == len(document.text)))
        if here < len(document.text):
            parts["validation"].append(_Piece(document.text[here:], True))
        at += len(document.text)
    return parts, "position"


class _Bar(Protocol):
    def __call__(self, what: str, done: int | None, total: int | None) -> None: ...


@contextmanager
def _progress() -> Iterator[_Bar]:
    """A progress bar on a terminal, else nothing."""
    if not sys.stderr.isatty() or os.environ.get("LOCAL_RANK", "0") != "0":
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("preparing the corpus: {task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda what, done, total: progress.update(task, description=what, completed=done or 0, total=total)
