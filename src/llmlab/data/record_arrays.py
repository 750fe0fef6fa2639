"""From records to arrays on disk: their texts, the part that each is in, their classes, and what is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmlab.data import cache, encoding, spans
from llmlab.data.account import printable
from llmlab.data.record_files import Record
from llmlab.data.tokenizer import Tokenizer
from llmlab.errors import UserError
from llmlab.record_kinds import Kind

FEWEST, MOST = 2, 10_000  # classes


def texts_of(record: Record, kind: Kind) -> Iterator[tuple[str, str]]:
    """(name, text) of each piece of a record: a field's name, or the role of a message."""
    fields: Any = record
    for field in kind.fields:
        value = fields.get(field.name)
        if value is None or field.shape not in ("text", "texts", "messages", "words"):
            continue
        if field.shape == "messages":
            yield from ((m["role"], m["content"]) for m in value)
        elif field.shape == "words":
            # As they stand in a text, so that a byte-level BPE gives them the ids that it has learnt.
            yield from (("word", f" {word}" if i else word) for i, word in enumerate(value))
        elif field.shape == "texts":
            yield from ((field.name, text) for text in value)
        else:
            yield field.name, value


def key(record: Record) -> str:
    """All of a record but its label, by which it is held out or not: a text keeps its side under any."""
    # Keys sorted: two files may hold a record's fields in another order.
    labels = ("label", "labels", "votes", "confidence", "answer", "start")
    if (
        "good" in record or "answers" in record
    ):  # a prompt's answers are on one side, or what is good would be known of it
        record = {"prompt": record["prompt"]}
    return json.dumps({k: v for k, v in record.items() if k not in labels}, ensure_ascii=False, sort_keys=True)


def side(record: Record) -> float:
    """A number in [0, 1) by which a record is held out or not."""
    # Not hash(), which Python salts anew in every process: a record would change sides from run to run.
    return int.from_bytes(hashlib.sha256(key(record).encode("utf-8")).digest()[:8], "big") / 2**64


def labels_of(record: Record) -> list[str]:
    """The class of a record, or those of its words."""
    return record["labels"] if "labels" in record else [record["label"]]


def classes(records: Sequence[Record]) -> list[str]:
    """The labels that occur, in the order of their numbers if all are whole numbers, else by name."""
    found = {label for r in records for label in labels_of(r)}
    # Not isdigit: it is true of superscripts, which int() refuses.
    numbers = all(label.removeprefix("-").isdecimal() for label in found)
    # "1" and "01" are two labels of one number.
    return sorted(found, key=lambda label: (int(label), label) if numbers else label)


def checked_classes(records: Sequence[Record], where: str) -> list[str]:
    """The labels that occur. UserError, which begins with `where`, if they are no classes: one teaches nothing, and more than
    MOST are rather a number or a name."""
    found = classes(records)
    if len(found) < FEWEST:
        raise UserError(f"{where}: all records have the label {printable(found[0])!r}; a classifier needs two or more")
    if len(found) > MOST:
        raise UserError(
            f"{where}: the records have {len(found):,} different labels; at most {MOST:,} are read as classes"
        )
    return found


def write(
    folder: Path,
    part: str,
    records: Sequence[Record],
    kind: Kind,
    tokenizer: Tokenizer,
    called: Mapping[str, int],
    labels: Mapping[str, int] | None,
    tick: Callable[[int], None],
) -> int:
    """The arrays of a part, as `Records` opens them; the number of tokens. called, labels: numbers by name."""
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    pieces, ends, names = [0], [0], []
    with (folder / f"{part}.raw").open("wb") as raw:
        texts = [(name, text) for r in records for name, text in texts_of(r, kind)]
        length = 0
        for chunk in encoding.encode(tokenizer, (text for _, text in texts)):
            # `ndarray.tofile` loses what a full disk refuses, in silence (findings/tofile_loses_bytes.sh).
            raw.write(chunk.ids.astype(dtype).tobytes())
            length += len(chunk.ids)
            if chunk.last:
                pieces.append(length)
            tick(chunk.length)
    for record in records:
        mine = [called[name] for name, _ in texts_of(record, kind)]
        names += mine
        ends.append(ends[-1] + len(mine))
    cache.raw_to_npy([folder / f"{part}.raw"], folder / f"{part}.npy", dtype, dtype, length)
    arrays = {"pieces": np.array(pieces, dtype=np.int64), "starts": np.array(ends, dtype=np.int64)}
    arrays["names"] = np.array(names, dtype=np.min_scalar_type(len(called)))
    if labels is not None:
        arrays["labels"] = np.array([labels[label] for r in records for label in labels_of(r)], dtype=np.int64)
    elif kind.name == "choices":
        arrays["labels"] = np.array([r["answer"] for r in records], dtype=np.int64)
    elif kind.name == "rated":
        arrays["labels"] = np.array([r["good"] for r in records], dtype=np.int64)
    elif kind.name == "questions":
        arrays["labels"] = spans.of_answers(records, tokenizer)
    if any("scores" in r for r in records):
        arrays["scores"] = np.array(
            [s for r in records for s in (0.0, *r["scores"])], dtype=np.float32
        )  # none of a prompt
    if any("confidence" in r for r in records):
        arrays["confidences"] = np.array([r.get("confidence", 1.0) for r in records], dtype=np.float32)
    if kind.keeps_rest:
        # Without ensure_ascii: Chinese takes twice the bytes as escapes.
        rest = [json.dumps(r["rest"], ensure_ascii=False).encode("utf-8") for r in records]
        # A bytearray: np.array takes bytes for one text, which it would read as a number.
        arrays["rest"] = np.array(bytearray(b"".join(rest)), dtype=np.uint8)
        # A 0 in front, so that record i reaches from [i] to [i + 1].
        arrays["rests"] = np.cumsum([0, *map(len, rest)], dtype=np.int64)
    for name, array in arrays.items():
        cache.save_array(folder / f"{part}_{name}.npy", array)
    return length
