"""From text to two streams of token ids on disk: read, split, tokenize, once for each choice of data and tokenizer."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmlab.data import account, cache, card, chat_templates, encoding, filtering, fingerprint, prepare_records
from llmlab.data.corpus import PARTS, Corpus
from llmlab.data.filtering import Chosen
from llmlab.data.fingerprint import OtherText
from llmlab.data.parts import Piece, leave_out_repeated, split_texts
from llmlab.data.progress import Bar, progress
from llmlab.data.record_arrays import texts_of
from llmlab.data.records import Records
from llmlab.data.sources import Document, Source, open_source
from llmlab.data.template import FILE as TEMPLATE
from llmlab.data.tokenizer import BESIDE, FILE, SPECIAL, Tokenizer, ends_nothing, make
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
) -> Corpus:
    """The corpus that `data` and `tokenizer` name, from the cache or made now.

    `special`: names of the special tokens that an objective needs. BPE and file tokenizers have eos besides, and so
    have characters where there is more than one document: it ends each document. A corpus of one document has none.
    `whole`: nothing is held out, the training part is all of the text.
    `home`: a run folder, whose tokenizer it must be: where that of `tokenizer` would be another, none is learnt.
    `text`: the fingerprint that it must have; OtherText, before anything is tokenized, where it has another.
    `reads`: "text", or the kind of its records. `labels`: the classes of a run, in their order; None: those that occur.
    `filters`: of documents, by name, in their order.

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
    source = open_source(data, reads)
    folder = _place(data, tokenizer, special, source, labels, filters)
    if home is not None and not same_tokenizer(folder, home):
        tokenizer = replace(tokenizer, kind="file", path=str(home))
        folder = _place(data, tokenizer, special, source, labels, filters)
    make = functools.partial(_make, kind=KINDS.get(reads), labels=labels, filters=filters)

    def fill(at: Path) -> dict[str, Any]:
        made = make(at, data, tokenizer, special, source, text)
        card.write(at, made, f"data.path={account.printable(data.path)}" if data.path else f"data={data.source}")
        return made

    manifest = cache.open_or_make(folder, fill)
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
) -> Path | None:
    """The folder of a corpus that was prepared before and is sound, of the files as they are now; None without one."""
    try:
        folder = _place(data, tokenizer, special, open_source(data, reads), filters=filters)
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
    files = sorted(Path(__file__).parent.rglob("*.py"))
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
) -> dict[str, Any]:
    with progress() as bar:
        source.account.quarantine = folder / account.QUARANTINE
        documents, read = _read(data, source, kind, filters, bar)
        listed = fingerprint.listed(documents)
        if wanted not in (None, found := fingerprint.fingerprint(listed)):
            raise OtherText(found, listed)
        fingerprint.write(folder, listed)
        if kind is not None:
            made = prepare_records.make(folder, data, cfg, special, documents, kind, labels, bar)
            return {**made, "fingerprint": found, "source": data.source, "read": read}
        parts, split = split_texts(documents, data)
        notes = []
        if split == "position" and (repeated := leave_out_repeated(parts)):
            notes.append(f"{repeated:,} held-out documents are left out: their text is in the training part too")
        if split != data.split:
            notes.append(
                f"no whole document of {len(documents)} falls on each side of data.split=document: "
                f"the last {data.validation:.0%} of the text is held out instead (data.split=position)"
            )
        bar("learning the tokenizer", None, None)
        eos = (cfg.kind != "char" or len(documents) > 1) and not ends_nothing(cfg)
        # Sorted: ids of special tokens, and with them weights, do not depend on the order in which an objective names
        # them.
        names = ("eos",) * eos + tuple(sorted(set(special) - ({"eos"} if eos else set())))
        train, validation = ([p.text for p in parts[part]] for part in PARTS)
        tokenizer = make(cfg, train, validation, names)
        end = tokenizer.special.get("eos") if len(documents) > 1 else None
        if end is None and len(documents) > 1:
            notes.append("the tokenizer has no token that ends a document: one follows the other without any")
        lead = tokenizer.opening(data.bos)
        if lead:
            shown = " ".join(tokenizer.inner.id_to_token(i) or str(i) for i in lead)
            why = (
                "data.bos=true" if data.bos else "as the tokenizer's own template has it (data.bos=false leaves it out)"
            )
            notes.append(f"each document begins with {shown}, {why}")
        total = sum(len(p.text) for pieces in parts.values() for p in pieces)
        done, tokens = 0, {}

        def tick(characters: int) -> None:
            nonlocal done
            done += characters
            bar("tokenizing", done, total)

        # Bits per byte are asked of text that is measured, never of text that is trained on; without a split all is
        # measured.
        measured = "train" if split == "none" else "validation"
        for part, pieces in parts.items():
            tokens[part], losses = _write(folder, part, pieces, tokenizer, (lead, end), part == measured, tick)
            notes += losses
        tokenizer.save(folder)
    return {
        "fingerprint": found,
        "source": data.source,
        "split": split,
        "documents": {part: len(pieces) for part, pieces in parts.items()},
        "bytes": {part: sum(len(p.text.encode("utf-8")) for p in pieces) for part, pieces in parts.items()},
        "tokens": tokens,
        "vocab_size": tokenizer.vocab_size,
        "special": {**tokenizer.special, **({"bos": lead[0]} if len(lead) == 1 else {})},
        "lead": list(lead),
        "notes": [*notes, *tokenizer.notes],
        "read": read,
    }


def _read(
    data: schema.Data, source: Source, kind: Kind | None, chosen: Chosen, bar: Bar
) -> tuple[list[Document], account.Read]:
    """The documents that the filters keep, and the account of all that were read. UserError where none is left."""

    def text_of(document: Document) -> str:
        return document.text if kind is None else "\n".join(t for _, t in texts_of(json.loads(document.text), kind))

    # A batch would be read ahead, and be in the account, where the last document may be any.
    ahead = {"workers": data.num_workers} if data.max_documents is None else {"at_once": 1}
    with filtering.Filters(chosen, text_of, **ahead) as filters:
        found = filters.kept(source.read(lambda done, total: bar("reading", done, total)))
        documents = list(itertools.islice(found, data.max_documents))
    where = f"data.path={data.path}" if data.path else f"data={data.source}"
    account.check_broken(source.account.fields(), where, data.strict, data.broken)
    if not documents and source.account.documents:
        raise UserError(filters.nothing_left(where, "document" if kind is None else "record"))
    if not documents:
        what = "text in it, only white space" if kind is None else "record in it that has any text"
        raise UserError(f"{where}: there is no {what}")
    read = source.account.fields()
    if chosen:
        kept = {"documents": len(documents), "bytes": sum(len(d.text.encode("utf-8")) for d in documents)}
        read = {**read, **kept, "filters": filters.accounts}  # type: ignore[typeddict-item]
    return documents, read


def _write(
    folder: Path,
    part: str,
    pieces: Sequence[Piece],
    tokenizer: Tokenizer,
    around: tuple[tuple[int, ...], int | None],
    sized: bool,
    tick: Callable[[int], None],
) -> tuple[int, list[str]]:
    """The tokens of a part, where documents start and, if `sized`, the bytes of each; (number of tokens, notes).

    around: what each document begins and ends with. Where both are one token it stands between two documents once.
    """
    lead, end = around
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    starts: list[int] = []
    at = largest = unknown = dropped = whole = 0
    told, begins, of = sized, True, iter(pieces)
    with (folder / "raw").open("wb") as raw, (folder / "raw_sizes").open("wb") as raw_sizes:
        for chunk in encoding.encode(tokenizer, (p.text for p in pieces), sized):
            ids, sizes = chunk.ids, chunk.sizes
            if begins:
                piece = next(of)
                # GPT-2's <|endoftext|> is both eos and bos: two in a row would be a document without text.
                if piece.begins and lead and (at == 0 or end not in lead):
                    ids = np.concatenate([lead, ids])
                    sizes = None if sizes is None else np.concatenate([np.zeros(len(lead), dtype=np.int64), sizes])
            if chunk.last and piece.ends and end is not None:
                ids = np.append(ids, end)
                sizes = None if sizes is None else np.append(sizes, 0)
            if chunk.left and sizes is not None and len(sizes):
                sizes[-1] += chunk.left
            if begins and len(ids):
                starts.append(at)
            begins = chunk.last
            at += len(ids)
            # `ndarray.tofile` writes through a C FILE of its own, and does not look at the error with which that
            # closes: on a full disk calls for less than its buffer lose their bytes in silence (numpy 2.4).
            raw.write(ids.astype(dtype).tobytes())
            told = told and sizes is not None
            if sizes is not None and len(sizes):
                largest = max(largest, int(sizes.max()))
                whole += int(sizes.sum())
                # Four bytes each at first: the largest size, and with it the type that is enough, is known at the end
                # only.
                raw_sizes.write(sizes.astype(np.uint32).tobytes())
            unknown, dropped = unknown + chunk.unknown, dropped + chunk.dropped
            tick(chunk.length)
    cache.raw_to_npy(folder / "raw", folder / f"{part}.npy", dtype, dtype, at)
    cache.save_array(folder / f"{part}_starts.npy", np.array(starts, dtype=np.int64))
    if told:
        cache.raw_to_npy(folder / "raw_sizes", folder / f"{part}_sizes.npy", np.uint32, np.min_scalar_type(largest), at)
    else:
        (folder / "raw_sizes").unlink()
    return at, _losses(part, sized and not told, whole, unknown, dropped)


def _losses(part: str, untold: bool, whole: int, unknown: int, dropped: int) -> list[str]:
    """Notes on text that bits per byte of a part don't tell of, a line each."""
    of = "the held-out text" if part == "validation" else "the text"
    if untold:
        return [f"no bits per byte: the tokenizer does not tell which bytes of {of} its tokens are"]
    lost = [
        f"{100 * n / whole:.2g} % of {of} {what}"
        for n, what in ((unknown, "is under the token for the unknown"), (dropped, "is under no token"))
        if n
    ]
    return [f"{' and '.join(lost)}: bits per byte count those bytes, but the loss does not know them"] if lost else []
