"""The user's own records: rows of JSON or of a table, each checked against its kind."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from llmlab.data import readers
from llmlab.data.account import (
    ALL_TIED,
    BLANK_RECORD,
    EMPTY_ANSWER,
    EQUAL_ANSWERS,
    UNANSWERED,
    UNVOTED,
    Document,
    Source,
    printable,
)
from llmlab.data.files import fault, good_items, opened, source, state, value_of
from llmlab.data.listing import File
from llmlab.data.readers.item import EXCERPT, Broken
from llmlab.data.record_messages import messages_of
from llmlab.data.record_values import NOBODY, check_together, checked_value, majority
from llmlab.errors import UserError
from llmlab.record_kinds import Field, Kind

SHOWN = 12  # keys of a record that an error names
NO_RECORD = "no records of the kind"


class Message(TypedDict):
    role: str
    content: str


class Record(TypedDict, total=False):
    """A record as its kind has it, whatever its keys were in the file. `rest`: the other keys of a kind that keeps them."""

    text: str
    text_b: str
    label: str
    confidence: float
    votes: list[str | None]
    words: list[str]
    labels: list[str]
    question: str
    context: str
    answer: str | int
    start: int
    choices: list[str]
    positive: str
    negative: str
    source: str
    target: str
    messages: list[Message]
    prompt: str
    good: bool
    answers: list[str]
    scores: NotRequired[list[float]]
    rest: NotRequired[dict[str, Any]]


def records(
    path: Path,
    kind: Kind,
    names: Mapping[str, str],
    keep_votes: bool = False,
    strict: bool = True,
    endings: tuple[str, ...] | None = None,
) -> Source:
    """All records of a kind at `path`, in the order of the files' names, each a document whose text is the record as JSON.

    names: the keys by which the files call a field, where they have others; "a.b" for one inside another object. keep_votes:
    records keep their votes beside the label of the majority. strict: the first that is no record is an error. endings: of
    the files that are read; None: of all formats. Raises UserError where there is nothing to read; what is wrong inside a
    file is found, with its line, when it is read.
    """
    mine = {key for field in kind.fields for key in field.keys}
    if foreign := [n for n in names if n not in mine]:
        raise UserError(f"data.fields.{foreign[0]}: no field of {kind}; leave it out")
    listed, account = opened(path, readers.ROWS, strict, endings)

    def read(file: File) -> Iterator[Document]:
        for item, name in good_items(file, readers.ROWS, lambda columns: None, account):
            where = readers.place(file.path, item)
            try:
                record = _record(item.value, kind, names, where, keep_votes)
            except UserError as e:
                error = str(e).removeprefix(where).removeprefix(": ")
                account.reject(fault(file, item, Broken(NO_RECORD, error, json.dumps(item.value)[:EXCERPT])))
                continue
            if reason := _empty(record, kind):
                account.blank.add(reason, name)
            else:
                yield Document(name, json.dumps(record, ensure_ascii=False))

    # The kind and the names decide what a record is made of, as much as the files do.
    how = [kind.name, dict(sorted(names.items())), *(["votes"] if keep_votes else [])]
    return source(listed, account, [*state(path, listed), *how], read)


def _record(row: object, kind: Kind, names: Mapping[str, str], where: str, keep_votes: bool = False) -> Record:
    """A row of a file as a record of its kind; UserError, which begins with `where`, for what is none."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: needs an object, but is {'a list' if isinstance(row, list) else 'one value'}")
    found: dict[str, Any] = {}
    taken: set[str] = set()

    def value(key: str) -> Any:
        key = names.get(key, key)
        taken.add(key)
        return value_of(row, key)

    for field in kind.fields:
        if field.named and not any(key in names for key in field.keys):
            continue
        # The first name that has a value: a null is no value, as tables of pandas write one where nothing is known.
        key, given = next(
            ((k, v) for k in (field.name, *field.also) if (v := value(k)) is not None), (field.name, None)
        )
        if field.shape == "label" and "votes" in found:
            if given is not None:
                raise UserError(f"{where}: has both label and votes; leave one of them out")
            found["label"], found["confidence"] = majority(found["votes"])
            if keep_votes:
                # How far they are believed is told when those of all records are known.
                found["confidence"] = 1.0
            else:
                del found["votes"]
            continue
        if given is None and field.turns:
            given = messages_of(value)
        if given is None and field.parts:
            given = [value(part) for part in field.parts]
            given = None if None in given else given
        if given is None:
            if field.required or field.named:
                raise UserError(f"{where}: {_missing(row, field, kind, names)}")
            continue
        checked = checked_value(given, field, f"{where}: {names.get(key, key)}")
        # Votes that agree by nine tenths and are believed by a half weigh 0.45.
        found[field.name] = checked * found.get("confidence", 1.0) if field.shape == "share" else checked
    listed = found.get("answers")
    check_together(found, where)
    if found.get("answers") != listed and value("answers") is None:
        raise UserError(f"{where}: rejected has a better score than chosen; leave one of them out")
    # Behind the fields: `taken` is complete only when each has been looked for.
    if kind.keeps_rest:
        found["rest"] = {k: v for k, v in row.items() if k not in taken}
    try:
        # json.loads takes the escape of half a surrogate pair, from which no UTF-8 can be made later.
        json.dumps(found, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(
            f"{where}: holds half of a surrogate pair (\\ud800 to \\udfff), which is no character"
        ) from None
    record: Any = found
    return record


def _missing(row: Mapping[str, Any], field: Field, kind: Kind, names: Mapping[str, str]) -> str:
    keys = [printable(k)[:60] for k in row]
    has = ", ".join(keys[:SHOWN]) + (" ..." if len(keys) > SHOWN else "") if keys else "no keys"
    wanted = " and ".join(field.parts) or field.name
    first = (field.parts or (field.name,))[0]
    if named := [names[k] for k in field.keys if k in names]:
        return f"there is no {printable(named[0])} in it; it has {has}"
    return f"{kind} need {wanted}; it has {has}: data.fields.{first}=KEY names another"


def _empty(record: Record, kind: Kind) -> str | None:
    """Why a record is left out: a text that it needs is of white space only, or nobody has voted on it."""
    fields: Any = record
    if kind.name == "chat":
        answers = [m["content"] for m in record["messages"] if m["role"] == "assistant"]
        return UNANSWERED if not answers else None if all(map(str.strip, answers)) else EMPTY_ANSWER
    if kind.name == "preferences" and (reason := _no_preference(record["answers"])):
        return reason
    if "scores" in record and len(set(record["scores"])) == 1:
        return ALL_TIED
    if any(f.required and f.shape == "text" and not fields[f.name].strip() for f in kind.fields):
        return BLANK_RECORD
    return UNVOTED if record.get("label") == NOBODY else None


def _no_preference(answers: Sequence[str]) -> str | None:
    """Why a preference teaches nothing."""
    if not all(map(str.strip, answers)):
        return EMPTY_ANSWER
    return EQUAL_ANSWERS if len(set(answers)) < len(answers) else None
