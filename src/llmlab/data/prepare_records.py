"""From records to arrays: split, learn the tokenizer, tokenize, with what a reader of the results should know."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmlab.data import chat_templates, conversations, fingerprint, label_model, record_arrays
from llmlab.data.account import Document, printable
from llmlab.data.framing import Framing
from llmlab.data.record_files import Record
from llmlab.data.tokenizer import ends_nothing
from llmlab.data.tokenizer import make as make_tokenizer
from llmlab.errors import UserError
from llmlab.record_kinds import LABELLED, Kind

if TYPE_CHECKING:
    from llmlab.config import schema
    from llmlab.data.progress import Bar
    from llmlab.data.template import Template

WHITE = re.compile(r"(?:\\[ntrf])+")
FRAMES = ("cls", "sep")  # special tokens of a tokenizer that is learnt for records of these kinds
FRAMED = (*LABELLED, "questions", "choices", "similar")


def make(
    folder: Path,
    data: schema.Data,
    cfg: schema.Tokenizer,
    special: tuple[str, ...],
    documents: Sequence[Document],
    kind: Kind,
    labels: Sequence[str] | None,
    bar: Bar,
    together: bool,
) -> dict[str, Any]:
    """Write the records of `documents` (each one as JSON) and their tokenizer into `folder`; the manifest, but for the
    fields that are of any corpus. together: equal records are in one part.
    """
    everything: list[Record] = [json.loads(d.text) for d in documents]
    parts, split = _split(everything, data, together)
    # In place: records of both parts are those of `everything`.
    notes = label_model.relabel(parts) if data.votes == "label_model" else []
    known = None if kind.name not in LABELLED else _classes(documents, everything, labels)
    if split != data.split:
        notes.append(
            f"no record of {len(everything)} falls on each side of data.split=document: the last {data.validation:.0%} "
            "of them are held out instead (data.split=position)"
        )
    if known is not None and split != "none":
        seen = {label for r in parts["train"] for label in record_arrays.labels_of(r)}
        # A class may be in the held-out part alone, of which a split by hash knows nothing.
        if unseen := [label for label in known if label not in seen]:
            notes.append(f"no training record has the label {', '.join(map(printable, unseen[:8]))}")
    bar("learning the tokenizer", None, None)
    texts = {part: [text for r in rs for _, text in record_arrays.texts_of(r, kind)] for part, rs in parts.items()}
    # A tokenizer.json has a template of its own or none, to which nothing is added.
    framed: tuple[str, ...] = FRAMES if kind.name in FRAMED and cfg.kind != "file" else ()
    if (preset := chat_templates.name_of(cfg, kind)) is not None:
        framed += chat_templates.SPECIAL.get(preset, ())
        # A tokenizer of characters knows those of the texts that it is learnt from, and a template has others.
        texts["train"].append(chat_templates.PRESETS[preset])
    ends = ("eos",) if not ends_nothing(cfg) else ()
    names = (*ends, *sorted({*special, *framed}.difference(ends)))
    tokenizer = make_tokenizer(cfg, texts["train"], texts["validation"], names)
    framing = Framing.from_tokenizer(tokenizer, tokenizer.opening(data.bos))
    template = chat_templates.give(tokenizer, cfg, kind) if kind.name in ("chat", *chat_templates.ASKED) else None
    if template is not None:
        # A template writes what begins a conversation and what ends an answer; transformers adds nothing to that either.
        framing = framing._replace(lead=[], end=None)
        named = {id(r): d.name for d, r in zip(documents, everything, strict=True)}
        parts = {part: [_written(r, kind, template, named[id(r)]) for r in rs] for part, rs in parts.items()}
        everything = [r for rs in parts.values() for r in rs]
    # In the order in which they occur: a role or a field is a number on disk, and a set has another order in each
    # process.
    called = list(dict.fromkeys(name for r in everything for name, _ in record_arrays.texts_of(r, kind)))
    whole = {part: [text for r in rs for _, text in record_arrays.texts_of(r, kind)] for part, rs in parts.items()}
    total, done = sum(len(t) for part in whole.values() for t in part), 0

    def tick(characters: int) -> None:
        nonlocal done
        done += characters
        bar("tokenizing", done, total)

    numbers = None if known is None else {label: i for i, label in enumerate(known)}
    of = {name: i for i, name in enumerate(called)}
    with nullcontext() if template is None else tokenizer.marked():
        tokens = {
            part: record_arrays.write(folder, part, rs, kind, tokenizer, of, numbers, tick)
            for part, rs in parts.items()
        }
    tokenizer.save(folder)
    lead = framing.lead
    return {
        "kind": kind.name,
        "split": split,
        "documents": {part: len(rs) for part, rs in parts.items()},
        "bytes": {part: sum(len(t.encode("utf-8")) for t in ts) for part, ts in whole.items()},
        "tokens": tokens,
        "vocab_size": tokenizer.vocab_size,
        "special": {**tokenizer.special, **({"bos": lead[0]} if len(lead) == 1 else {})},
        "lead": list(lead),
        "framing": [list(framing.single), list(framing.pair), list(lead), framing.end],
        "called": called,
        "labels": known,
        "notes": [*notes, *tokenizer.notes],
    }


def _classes(documents: Sequence[Document], found: Sequence[Record], labels: Sequence[str] | None) -> list[str]:
    """The classes in the order of their numbers: `labels`, or those that occur."""
    if labels is not None:
        for document, record in zip(documents, found, strict=True):
            if other := [label for label in record_arrays.labels_of(record) if label not in labels]:
                shown = ", ".join(map(printable, labels[:12])) + (" ..." if len(labels) > 12 else "")
                raise UserError(
                    f"data.path: {document.name}: the model has no class {printable(other[0])!r}; it has {shown}"
                )
        # In the model's own order: its head has a row for each number.
        return list(labels)
    return record_arrays.checked_classes(found, "data.path")


def _written(record: Record, kind: Kind, template: Template, name: str) -> Record:
    try:
        return conversations.written(record, kind, template)
    except UserError as e:
        raise UserError(f"data.path: {name}: {e}") from None


def _split(found: Sequence[Record], data: schema.Data, together: bool) -> tuple[dict[str, list[Record]], str]:
    """Records by a hash of all but their label, or the last share of them; the latter too where a side would be empty."""
    if data.split == "none":
        return {"train": list(found), "validation": []}, "none"
    if data.split == "document":
        parts: dict[str, list[Record]] = {"train": [], "validation": []}
        sides: dict[bytes, str] = {}
        for record in found:
            # White space inside a text is "\\n" in JSON: made a space, so that it runs together with other white space.
            same = fingerprint.normal(WHITE.sub(" ", record_arrays.key(record)))
            place = "validation" if record_arrays.side(record) < data.validation else "train"
            parts[sides.setdefault(same, place) if together else place].append(record)
        if all(parts.values()):
            return parts, "document"
    # At least one record is held out, however small the share.
    cut = min(len(found) - 1, round(len(found) * (1 - data.validation)))
    return {"train": list(found[:cut]), "validation": list(found[cut:])}, "position"
