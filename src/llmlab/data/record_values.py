"""Values of a record's fields, each checked against its shape, and labels that several voters give."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from llmlab.data.record_messages import checked_messages
from llmlab.errors import UserError
from llmlab.record_kinds import Field

NOBODY = ""  # the label of a record on which all voters abstain, which is left out like one without text


def checked_value(value: object, field: Field, where: str) -> Any:
    """The value of a field, a label as a text; UserError, which begins with `where`, for one of another shape."""
    if field.shape == "label":
        return _label(value, where)
    if field.shape == "labels":
        if not isinstance(value, list):
            raise UserError(f"{where} must be a list of labels, one for each word")
        return [_label(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if field.shape == "votes":
        if not (isinstance(value, list) and value):
            raise UserError(f"{where} must be a list of labels, null where a voter abstains")
        return [None if v is None else _label(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if field.shape == "words":
        if not (isinstance(value, list) and value):
            raise UserError(f"{where} must be a list of words, but is {_shown(value)}")
        for i, word in enumerate(value):
            if not (isinstance(word, str) and word.strip()):
                raise UserError(f"{where}[{i}] must be a word, but is {_shown(word)}")
        return value
    if field.shape == "flag":
        return _flag(value, where)
    if field.shape == "share":
        return _share(value, where)
    if field.shape in ("place", "which"):
        return _number(value, where)
    if field.shape == "messages":
        return checked_messages(value, where)
    if field.shape == "numbers":
        if not isinstance(value, list) or any(_parsed(v, float) is None for v in value):
            raise UserError(f"{where} must be a list of numbers, one for each answer, but is {_shown(value)}")
        return [float(v) for v in value]
    if field.shape == "texts":
        if not isinstance(value, list) or len(value) < 2 or not all(isinstance(v, str) for v in value):
            best = ", the best first" if field.parts else ""
            raise UserError(f"{where} must be a list of two texts or more{best}")
        return value
    if not isinstance(value, str):
        raise UserError(f"{where} must be a text, but is {_shown(value)}")
    return value


def check_together(record: dict[str, Any], where: str) -> None:
    """UserError where fields of a record do not fit each other. Of a question it finds the place of the answer."""
    if "words" in record and len(record["words"]) != len(record["labels"]):
        raise UserError(f"{where}: has {len(record['words'])} words, but {len(record['labels'])} labels")
    if "scores" in record or "ranks" in record:
        _order(record, where)
    if "choices" in record and not record["answer"] < len(record["choices"]):
        raise UserError(
            f"{where}: answer is {record['answer']}, but there are {len(record['choices'])} choices, numbered from 0"
        )
    if "context" in record:
        _place_answer(record, where)


def _order(record: dict[str, Any], where: str) -> None:
    """Put the answers in the order of their scores, the best first; ranks become scores, of which the first is the highest."""
    if "scores" in record and "ranks" in record:
        raise UserError(f"{where}: has both scores and ranks; leave one of them out")
    answers, name = record["answers"], "scores" if "scores" in record else "ranks"
    values = record.pop(name)
    if len(values) != len(answers):
        raise UserError(f"{where}: has {len(answers)} answers, but {len(values)} {name}")
    scores = values if name == "scores" else [-v for v in values]
    # sorted() is stable: answers that are equally good stay as they stand.
    order = sorted(range(len(answers)), key=lambda i: -scores[i])
    record["answers"], record["scores"] = [answers[i] for i in order], [scores[i] for i in order]


def _place_answer(record: dict[str, Any], where: str) -> None:
    answer, context = record.get("answer"), record["context"]
    if answer is None:
        record.pop("start", None)
        return
    if not answer.strip():
        raise UserError(f"{where}: answer is empty; leave it out where the context has none")
    if "start" in record:
        begin = record["start"]
        if context[begin : begin + len(answer)] != answer:
            has = _shown(context[begin : begin + len(answer)])
            raise UserError(f"{where}: the context has {has} at start={begin}, not the answer {_shown(answer)}")
        return
    n = context.count(answer)
    if n != 1:
        raise UserError(
            f"{where}: the answer {_shown(answer)} is {'not in the context' if n == 0 else f'{n} times in the context'}; "
            "give start, the number of characters before it"
        )
    record["start"] = context.index(answer)


def majority(votes: Sequence[str | None]) -> tuple[str, float]:
    """The label that most voters give, and their share of those that do not abstain; of equal ones the first by name.

    A weighted vote has a voter several times in the list. Without any vote: (NOBODY, 0).
    """
    counts = Counter(vote for vote in votes if vote is not None)
    if not counts:
        return NOBODY, 0.0
    most = max(counts.values())
    return min(label for label, n in counts.items() if n == most), most / counts.total()


def _label(value: object, where: str) -> str:
    # Before int, of which bool is a subclass.
    if isinstance(value, bool):
        return str(value).lower()  # as it is written in JSON
    if isinstance(value, int) or (isinstance(value, str) and value.strip()):
        return str(value)
    raise UserError(f"{where} must be a text or a whole number, but is {_shown(value)}")


def _flag(value: object, where: str) -> bool:
    # A table's cells are texts.
    known = {"true": True, "1": True, "false": False, "0": False}
    flag = known.get(str(value).strip().lower())
    if flag is None:
        raise UserError(f"{where} must be true or false, but is {_shown(value)}")
    return flag


def _share(value: object, where: str) -> float:
    number = _parsed(value, float)
    if number is None or not 0 <= number <= 1:
        raise UserError(f"{where} must be a number from 0 to 1, but is {_shown(value)}")
    return float(number)


def _number(value: object, where: str) -> int:
    number = _parsed(value, int)
    if number is None or number < 0:
        raise UserError(f"{where} must be a whole number, counted from 0, but is {_shown(value)}")
    return int(number)


def _parsed(value: object, kind: type[int] | type[float]) -> float | None:
    """A number, or what the text of a table's cell says; None where it is neither."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if kind is int and isinstance(value, float):
        return None
    try:
        number = kind(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _shown(value: object) -> str:
    return json.dumps(value)[:60]
