"""From text to two streams of token ids on disk: read, split, tokenize, once for each choice of data and tokenizer."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmlab import ngram
from llmlab.data import account, cache, card, chat_templates, filtering, fingerprint, prepare_records, prepare_texts
from llmlab.data.corpus import PARTS, Corpus
from llmlab.data.filtering import Chosen
from llmlab.data.fingerprint import OtherText
from llmlab.data.progress import progress
from llmlab.data.reading import Reading
from llmlab.data.records import Records
from llmlab.data.sources import RULES, Source, open_source
from llmlab.data.template import FILE as TEMPLATE
from llmlab.data.tokenizer import BESIDE, FILE, SPECIAL
from llmlab.data.windows import Stream
from llmlab.errors import UserError
from llmlab.files import expanded
from llmlab.ranks import rank_zero_info
from llmlab.record_kinds import KINDS, TEXT, Kind

if TYPE_CHECKING:
    from llmlab.config import schema

NONE: Chosen = {}  # no filters


def prepare(
    data: schema.Data,
    tokenizer: schema.Tokenizer,
    special: tuple[str, ...] = (),
    *,
    whole: bool = False,
    home: Path | None = None,
    text: str | None = None,
    reads: str = TEXT,
    labels: Sequence[str] | None = None,
    filters: Chosen = NONE,
    rules: int = RULES,
) -> Corpus:
    """The corpus that `data` and `tokenizer` name, from the cache or made now.

    `special`: names of the special tokens that an objective needs. BPE and file tokenizers have eos besides, and so
    have characters where there is more than one document: it ends each document. A corpus of one document has none.
    `whole`: nothing is held out, the training part is all of the text.
    `home`: a run folder, whose tokenizer it must be: where that of `tokenizer` would be another, none is learnt.
    `text`: the fingerprint that it must have; OtherText, before anything is tokenized, where it has another.
    `reads`: "text", or the kind of its records. `labels`: the classes of a run, in their order; None: those that occur.
    `filters`: of documents, by name, in their order. `rules`: those of a run, by which its files are read and split.

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
    if home is not None and tokenizer.template is not None and (home / TEMPLATE).is_file():
        # The run's own copy: the file that was named then may be another now, or gone.
        tokenizer = replace(tokenizer, template=str(home / TEMPLATE))
    source = open_source(data, reads, rules)
    folder = _place(data, tokenizer, special, source, labels, filters, rules)
    if home is not None and not same_tokenizer(folder, home):
        tokenizer = replace(tokenizer, kind="file", path=str(home))
        folder = _place(data, tokenizer, special, source, labels, filters, rules)
    make = functools.partial(_make, kind=KINDS.get(reads), labels=labels, filters=filters, together=rules >= RULES)

    def fill(at: Path) -> dict[str, Any]:
        made = make(at, data, tokenizer, special, source, text)
        card.write(at, made, f"data.path={account.printable(data.path)}" if data.path else f"data={data.source}")
        return {**made, "rules": rules}

    manifest = cache.open_or_make(folder, fill, resumes=reads == TEXT)
    if text not in (None, manifest["fingerprint"]):
        raise OtherText(manifest["fingerprint"], fingerprint.read(folder) or [])
    for note in manifest["notes"]:
        rank_zero_info(note)
    # A file that is left out may come or go without changing the corpus, so the kept account may be out of date.
    manifest["read"] = source.account.renewed(manifest["read"])
    # A corpus that was prepared before may have been allowed more.
    account.check_broken(manifest["read"], where := f"data.path={data.path}", data.strict, data.broken)
    for line in account.told(manifest["read"], where, folder):
        rank_zero_info(line)
    for filtered in manifest["read"].get("filters", ()):
        rank_zero_info(filtering.line(filtered, "document" if reads == TEXT else "record"))
    if reads != TEXT:
        held = {part: Records.open(folder, part, manifest["called"]) for part in PARTS}
        if empty := [part for part in PARTS if not held[part].count and not (whole and part == "validation")]:
            raise UserError(
                f"data.path={data.path}: the {empty[0]} part has no record; it needs more, or another data.validation"
            )
        return Corpus(folder, manifest, **held)
    parts = {part: Stream.open(*(folder / f"{part}{of}.npy" for of in ("", "_starts", "_sizes"))) for part in PARTS}
    for part, stream in parts.items():
        if len(stream) <= data.seq_len and not (whole and part == "validation"):
            raise UserError(
                f"data.seq_len={data.seq_len}: the {part} part of the corpus has {len(stream):,} tokens, too few for a "
                f"window of {data.seq_len + 1:,}: it needs more text, a smaller data.seq_len or another data.validation"
            )
    return Corpus(folder, manifest, **parts)


def _place(
    data: schema.Data,
    tokenizer: schema.Tokenizer,
    special: tuple[str, ...],
    source: Source,
    labels: Sequence[str] | None = None,
    filters: Chosen = NONE,
    rules: int = RULES,
) -> Path:
    """The folder of a corpus in the cache, by all that decides what is in it."""
    choice = {
        "code": _code(),
        "data": [data.source, data.validation, data.split, data.max_documents, data.bos],
        "tokenizer": [
            tokenizer.kind,
            tokenizer.vocab_size if tokenizer.kind == "bpe" else None,
            _stamp(tokenizer.path),
            *([] if tokenizer.template is None else [chat_templates.source(tokenizer.template)]),
        ],
        "special": sorted(set(special)),
        "source": source.stamp,
        "rules": rules,
        "labels": None if labels is None else list(labels),
        # Another version of tokenizers may split or merge a text otherwise.
        "libraries": [importlib.metadata.version("tokenizers"), np.__version__],
    }
    if filters:
        choice["filters"] = filtering.identity(filters)
    return cache.root() / "corpora" / cache.digest(choice)[:24]


def cached(
    data: schema.Data,
    tokenizer: schema.Tokenizer,
    special: tuple[str, ...] = (),
    reads: str = TEXT,
    filters: Chosen = NONE,
    rules: int = RULES,
) -> Path | None:
    """The folder of a corpus that was prepared before and is sound, of the files as they are now; None without one."""
    try:
        folder = _place(data, tokenizer, special, open_source(data, reads, rules), filters=filters, rules=rules)
        # Checked and not only looked for: a folder that lost a file would be prepared again by whoever opens it.
        cache.check(folder)
    except (UserError, OSError, cache.Damaged):
        return None
    return folder


def same_tokenizer(folder: Path, other: Path) -> bool:
    """True if the tokenizers that two folders hold are the same, byte for byte."""
    try:
        return all((folder / n).read_bytes() == (other / n).read_bytes() for n in (FILE, SPECIAL))
    except OSError:
        return False


def _code() -> str:
    """sha256 of the modules that decide what is in a cached corpus: it is made anew when one of them changes.

    All of this folder and those in it: a module too many makes a corpus anew once, one too few would serve an old one for ever.
    """
    # The model of n-grams may be a filter's, beside what counts it here.
    files = [*sorted(Path(__file__).parent.rglob("*.py")), Path(ngram.__file__)]
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()


def _stamp(path: str | None) -> Any:
    if not path:
        return None
    file = expanded(path)
    home = file if file.is_dir() else file.parent
    # A run folder may be copied or moved: its tokenizer goes by what is in the files.
    if (home / SPECIAL).is_file():
        names = [n for n in (FILE, SPECIAL, *BESIDE) if (home / n).is_file()]
        return [[n, hashlib.sha256((home / n).read_bytes()).hexdigest()] for n in names]
    # Other files go by size and times: a tokenizer.json may have 35 MB, which would be hashed at each start.
    stats = [p.stat() for p in (file, *(home / n for n in (FILE, "config.json", *BESIDE))) if p.is_file()]
    return [str(file.resolve()), [[s.st_size, s.st_mtime_ns, s.st_ctime_ns] for s in stats]]


# ---------------------------------------------------------------- the work


def _make(
    folder: Path,
    data: schema.Data,
    cfg: schema.Tokenizer,
    special: tuple[str, ...],
    source: Source,
    wanted: str | None,
    kind: Kind | None,
    labels: Sequence[str] | None,
    filters: Chosen,
    together: bool,
) -> dict[str, Any]:
    with progress() as bar:
        source.account.quarantine = folder / account.QUARANTINE
        reading = Reading(data, source, kind, filters, bar)
        if kind is None:
            return prepare_texts.make(folder, data, cfg, special, reading, wanted, bar, together)
        documents = list(reading.documents())
        with fingerprint.listing(folder) as list_one:
            for one in (listed := [fingerprint.listed(d.name, d.text.encode("utf-8")) for d in documents]):
                list_one(one)
        if wanted not in (None, found := fingerprint.fingerprint(listed)):
            raise OtherText(found, listed)
        made = prepare_records.make(folder, data, cfg, special, documents, kind, labels, bar, together)
        return {**made, "fingerprint": found, "source": data.source, "read": reading.account()}
