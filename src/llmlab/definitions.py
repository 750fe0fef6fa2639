"""Parts that are defined while Python runs, in a cell of a notebook or in a script: read from the class itself.

What is said of such a part is what `llmlab.source` says of one in a file. A class keeps no comments and, in a notebook, no
source, so an option's help is a line of the docstring or `Annotated[..., "..."]`.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union

from llmlab import attributes, source
from llmlab.errors import UserError
from llmlab.source import KNOWN, REQUIRED, SCALARS, Entry, Option

KNOWN_HERE = (*KNOWN, "builtins")


class _Wrong(ValueError):
    """A broken rule for parts; the message is about the class."""


def entry(cls: type, slot: str, name: str, defaults: Mapping[str, Any], file: str, line: int) -> Entry:
    """The index's entry for a class. UserError, in one line, where it breaks the rules for parts."""
    # getdoc goes on to the bases, whose docstring is about them; a class always has a __doc__, None where it wrote
    # none.
    doc = inspect.getdoc(cls) if "__doc__" in vars(cls) and cls.__doc__ else ""
    try:
        options = _options(cls)
        for key, value in defaults.items():
            if key not in options:
                raise _Wrong(f"{cls.__name__} has no option {key!r} to give another default")
            options[key] = dataclasses.replace(options[key], default=_literal(value, f"the default of {key}"))
        declared = _attributes(cls, slot, options)
    except _Wrong as e:
        raise UserError(f"{slot}={name} ({file}:{line}): {e}") from None
    doc, paper = source.split_doc(name, doc or "")
    return Entry(slot, name, cls.__module__, cls.__qualname__, Path(file), line, doc, paper, options, declared, cls)


def _own(cls: type) -> list[type]:
    """The class and its bases, but for those of frameworks, nearest first."""
    # nn.Module and its like take arguments that are no options.
    return [c for c in cls.__mro__ if c is cls or c.__module__.partition(".")[0] not in KNOWN_HERE]


def _options(cls: type) -> dict[str, Option]:
    made = next((c for c in _own(cls) if "__init__" in vars(c)), None)
    if made is None:
        return {}
    init = vars(made)["__init__"]
    fields = {f.name for f in dataclasses.fields(made)} if dataclasses.is_dataclass(made) else set()
    # The signature of the function, not of the class, whose metaclass may have another: `self` comes first.
    _, *given = inspect.signature(init).parameters.values()
    # A dataclass's own __init__ has positional-or-keyword arguments, unless it is kw_only.
    generated = bool(given) and {p.name for p in given} <= fields
    doc = "\n".join(c.__doc__ or "" for c in _own(cls))
    options = {}
    for p in given:
        if p.kind is p.POSITIONAL_ONLY:
            continue
        if p.kind is not p.KEYWORD_ONLY and not (generated and p.kind is p.POSITIONAL_OR_KEYWORD):
            raise _Wrong("arguments are positional-only (given by the framework) or keyword-only")
        if p.annotation is p.empty:
            raise _Wrong(f"the option {p.name} needs a type")
        options[p.name] = _option(p, _evaluated(p.annotation, made, p.name), doc)
    return options


def _evaluated(annotation: object, made: type, name: str) -> Any:
    """An annotation that `from __future__ import annotations` has left as text. A dataclass keeps it in its fields alone."""
    if not isinstance(annotation, str):
        return annotation
    init = vars(made)["__init__"]
    names = getattr(sys.modules.get(made.__module__), "__dict__", {}) | init.__globals__
    try:
        # typing.get_type_hints would evaluate all annotations, and those of arguments that the framework gives may name
        # what is imported for type checkers alone.
        return eval(annotation, names, dict(vars(made)))
    except Exception as e:
        raise _Wrong(f"the type of the option {name} can't be read: {e}") from None


def _option(p: inspect.Parameter, hint: Any, doc: str) -> Option:
    said = next((x for x in _annotated(hint) if isinstance(x, str)), "")
    if typing.get_origin(hint) is Annotated:
        # `Annotated[int, "help"]`: the type is the first.
        hint = typing.get_args(hint)[0]
    kind, choices = _type(hint, p.name)
    default = REQUIRED if p.default is p.empty else _literal(p.default, f"the default of {p.name}")
    spelled = attributes.spelled(hint)
    return Option(kind, default, choices, source.help_of(p.name, doc) or said, spelled, spelled.startswith("tuple"))


def _annotated(hint: Any) -> tuple[Any, ...]:
    return getattr(hint, "__metadata__", ())


def _type(hint: Any, name: str) -> tuple[Any, tuple[Any, ...]]:
    """(a type that OmegaConf checks, the choices of a Literal), as `source` reads annotations."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint in SCALARS.values():
        return hint, ()
    # `int | None` has another origin than Optional[int] (Python 3.11).
    if origin in (Union, types.UnionType):
        several = [_type(i, name) for i in inner if i is not type(None)]
        choices = several[0][1] if len(several) == 1 else ()
        kind: Any = Union[tuple(k for k, _ in several)]
        return (Optional[kind] if type(None) in inner else kind), choices
    if origin is Literal:
        if not inner:
            raise _Wrong(f"the option {name} has no choices")
        if len({type(v) for v in inner}) > 1:
            raise _Wrong(f"the choices of the option {name} must be of one type")
        return type(inner[0]), inner
    if origin in (list, tuple, dict):
        kinds = [_type(i, name) for i in inner if i is not Ellipsis]
        if any(choices for _, choices in kinds):
            raise _Wrong(f"the option {name}: Literal can't be inside of a list, tuple or dict")
        return (dict[kinds[0][0], kinds[1][0]] if origin is dict else list[kinds[0][0]]), ()  # type: ignore[misc]
    raise _Wrong(source.not_a_type(name, attributes.spelled(hint)))


def _attributes(cls: type, slot: str, options: Mapping[str, Option]) -> dict[str, Any]:
    known = attributes.of_slot(slot)
    found: dict[str, Any] = {}
    for owner, name, value in _assigned(cls):
        if name in known and not known[name].literal:
            continue
        if name in known and known[name].own and owner.__module__ != cls.__module__:
            continue
        if not _is_literal(value):
            # A method or a property may have the name of an attribute; another value that is no literal may not.
            if name in known and not callable(value) and not hasattr(type(value), "__get__"):
                raise _Wrong(f"{name} must be a literal, but is {value!r}")
            found.pop(name, None)
            continue
        found[name] = value
        if wrong := attributes.problem(slot, name, value, options):
            raise _Wrong(wrong)
    return found


def _assigned(cls: type) -> Iterator[tuple[type, str, Any]]:
    """(class, name, value) of the public attributes of a part and its bases, the furthest base first; no options."""
    for c in reversed(_own(cls)):
        fields = {f.name for f in dataclasses.fields(c)} if dataclasses.is_dataclass(c) else set()
        yield from ((c, k, v) for k, v in vars(c).items() if not k.startswith("_") and k not in fields)


def _literal(value: object, what: str) -> Any:
    if not _is_literal(value):
        raise _Wrong(f"{what} must be a literal, but is {value!r}")
    return value


def _is_literal(value: object) -> bool:
    if isinstance(value, dict):
        return all(_is_literal(k) and _is_literal(v) for k, v in value.items())
    if isinstance(value, list | tuple | set):
        return all(map(_is_literal, value))
    # The types that ast.literal_eval reads, but for bytes and complex numbers, which no config holds.
    return value is None or isinstance(value, bool | int | float | str)
