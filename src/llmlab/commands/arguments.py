"""`key=value` arguments of the smaller commands, typed by a dataclass. Values are read as Hydra's command line has them."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

from llmlab.config import guess
from llmlab.config.aliases import ARGUMENTS
from llmlab.errors import UserError

T = TypeVar("T")
# The limit for whole numbers: tensors count in 64 bits, and further seeds are counted up from a seed (seed + 1 ...).
LARGEST = 2**62
READ = {"true": True, "false": False}


def parse(argv: Sequence[str], cls: type[T], command: str) -> T:
    """An instance of the dataclass `cls` from `argv`; all problems at once. `--json` sets a field `json`; a key whose field
    is a list may be given several times.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    # `fields(cls)` has the annotations as strings here: every command's module defers their evaluation.
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    problems = []
    skip = False
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        if skip:  # the value of a flag
            skip = False
            continue
        key, equals, text = word.partition("=")
        name = key.lstrip("-").replace("-", "_")
        if word.startswith("--") and word[2:] in fields and hints[word[2:]] is bool:
            values[word[2:]] = True
        elif word.startswith("-") and (meant := [f for f in (name, *ARGUMENTS.get(name, ())) if f in fields]):
            skip = not equals and following[:1] not in ("", "-") and "=" not in following
            value = text if equals else following if skip else "VALUE"
            problems.append(f"{key}: keys have no dashes, type {' or '.join(f'{f}={value}' for f in meant[:2])}")
        elif not equals:
            problems.append(f"{word}: must be KEY=VALUE; {guess.argument(name, fields)}")
        elif key not in fields:
            problems.append(f"{key}: there is no such key of llmlab {command}; {guess.argument(name, fields)}")
        elif not text and type(None) in _options(hints[key]):  # not as if it were not there
            problems.append(f"{key}=: give it a value, or leave it out")
        else:
            try:
                if typing.get_origin(hints[key]) is list:
                    values.setdefault(key, []).append(_convert(text, typing.get_args(hints[key])[0]))
                elif key in values:
                    problems.append(f"{key} is given twice; leave one of them out")
                else:
                    values[key] = _convert(text, hints[key])
            except ValueError:
                # isdecimal, not isdigit: "²".isdigit() is true, but int("²") is an error, of which 2^62 says nothing.
                below = " below 2^62" if text.lstrip("+-").isdecimal() else ""
                problems.append(f"{key}={text[:100]}: must be {_name(hints[key])}{below}")
    has_default = {n for n, f in fields.items() if (f.default, f.default_factory) != (dataclasses.MISSING,) * 2}
    required = [n for n in fields if n not in has_default and n not in values]
    # Only where all else is right: a key that was mistyped is often the one that is missing.
    problems += [f"{n} is missing; llmlab {command} {n}=..." for n in required if not problems]
    if problems:
        raise UserError("\n".join(problems))
    if isinstance(values.get("run"), str):
        from llmlab.runs import newest

        values["run"] = newest.resolve_run(values["run"])
    return cls(**values)


def dashed(argv: Sequence[str], cls: type, command: str) -> None:
    """UserError for the first flag that is none, before its value is taken for a folder."""
    for i, word in enumerate(argv):
        if word.startswith("--") and word != "--json":
            parse(argv[i : i + 2], cls, command)


def either(run: str | None, hf: str | None, command: str) -> None:
    """UserError unless one of run= and hf= is given."""
    if (run is None) == (hf is None):
        which = "run is missing" if run is None else "run and hf can't both be given"
        raise UserError(f"{which}; llmlab {command} run=FOLDER, or hf=FOLDER for a Hugging Face checkpoint")


def _options(hint: object) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _convert(text: str, hint: object) -> Any:
    options = _options(hint)
    if type(None) in options and text in ("null", "none"):
        return None
    # bool("false") is True.
    if bool in options:
        if text.lower() not in READ:
            raise ValueError(text)
        return READ[text.lower()]
    value = next(t for t in options if t is not type(None))(text)
    if isinstance(value, int) and abs(value) >= LARGEST:
        raise ValueError(text)
    return value


def _name(hint: object) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    return " or ".join(names[t] for t in _options(hint))
