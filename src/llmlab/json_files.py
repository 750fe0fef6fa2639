"""JSON and YAML that something else wrote or may have damaged: limits on size, nesting and numbers, and a required shape.

What a file must hold is said as a type: `dict[str, str]`, `list[int] | None`, a `Literal`, or a `TypedDict`, whose
`NotRequired` keys may be missing. Keys that a `TypedDict` does not name are allowed, as every newer writer adds some.
"""

from __future__ import annotations

import json
import stat
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NotRequired, Required, TypeAlias, TypeVar, Union, cast

from llmlab.errors import UserError

if TYPE_CHECKING:
    import yaml

MOST_BYTES = 256 << 20  # a tokenizer.json of 250,000 tokens has 35 MB
DEEPEST = 100  # levels; what transformers writes has fewer than 10
LARGEST = 1 << 63  # whole numbers beyond it fit no tensor, and no float beyond some 300 digits

T = TypeVar("T")
# A required shape where it is no class, of which `type[T]` says what comes back: `dict[str, int]`, a `Literal`, a union.
Shape: TypeAlias = "object"
Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"  # a value as json.loads gives it
NO_LIMIT = (
    "model_max_length"  # where transformers writes int(1e30) for "none" into each tokenizer_config.json that it saves
)
NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
NAMES |= {dict: "an object", list: "a list"}


def read_json(path: Path, shape: type[T] | Shape = dict, *, most: int = MOST_BYTES) -> T:
    """The content of a JSON file of the given shape. UserError names the file, and the key where there is one.

    FileNotFoundError is raised as it is: whether a file may be missing is for the caller to say.
    """
    return parse_json(read_text(path, most), shape, str(path))


def parse_json(text: str, shape: type[T] | Shape, where: str) -> T:
    """`read_json` for a text in memory; `where` begins the message."""
    value = loads(text, where)
    return check_shape(value, shape, where)


def loads(text: str, where: str) -> Any:
    """The value of a text of JSON, whatever its shape; UserError, which begins with `where`, for what is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        # Of a line of .jsonl, whose number `where` has, the column alone.
        at = f": line {e.lineno} column {e.colno}" if "\n" in text else f" at column {e.colno}"
        raise UserError(f"{where}: not valid JSON ({e.msg}{at})") from None
    except RecursionError:
        raise UserError(f"{where}: nested more than {DEEPEST} levels deep") from None
    except ValueError:  # int() refuses a literal of more than 4,300 digits
        raise UserError(f"{where}: holds a number of too many digits") from None


def read_yaml(
    path: Path, shape: type[T] | Shape = dict, *, most: int = MOST_BYTES, loader: type[yaml.SafeLoader] | None = None
) -> T:
    """The content of a YAML file of the given shape. UserError as for `read_json`.

    loader: OmegaConf's by default, with its reading of numbers; libyaml's is ten times faster.
    """
    import yaml

    # Private: OmegaConf 2.3 has no public name for it.
    from omegaconf._utils import get_yaml_loader

    text = read_text(path, most)
    try:
        deep = 0
        # Events come before anything is built of them; libyaml took 0.03 ms for those of conf/experiment/bert.yaml, PyYAML
        # 1.3 ms.
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            if isinstance(event, yaml.AliasEvent):  # a few lines of them stand for gigabytes
                raise UserError(f"{path}: holds an alias (*{event.anchor}), which is not read")
            deep += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if deep > DEEPEST:
                raise UserError(f"{path}: nested more than {DEEPEST} levels deep")
        # OmegaConf's loader reads 1e-3 as a number, which YAML 1.1, and so PyYAML, takes for a text.
        value = yaml.load(text, Loader=loader or get_yaml_loader())
    except UserError:  # which is a ValueError too
        raise
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        at = f"line {mark.line + 1}: " if mark else ""
        raise UserError(f"{path}: not valid YAML ({at}{getattr(e, 'problem', None) or type(e).__name__})") from None
    except ValueError as e:  # a number of too many digits
        raise UserError(f"{path}: not valid YAML ({' '.join(str(e).split())[:100]})") from None
    return check_shape(value, shape, str(path))


def json_lines(file: Iterable[str]) -> Iterator[tuple[int, str]]:
    """The lines of a .jsonl file that was opened with universal newlines, numbered from 1; blank ones are left out.

    A line ends in \\n, \\r\\n or \\r, none of which can be inside a JSON string. U+2028 and the like may stand there as they
    are, and `str.splitlines` would cut at them. Byte order marks are taken off every line: files that were put together
    have one in the middle too.
    """
    for number, line in enumerate(file, start=1):
        if text := line.strip().removeprefix("\ufeff").strip():
            yield number, text


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """A file's text in UTF-8, a byte order mark left out. UserError for a pipe, a device, too long a file, other bytes."""
    try:
        about = path.stat()  # before it is opened: a named pipe would wait for a writer
        if not stat.S_ISREG(about.st_mode):
            raise UserError(f"{path} is {'a folder' if stat.S_ISDIR(about.st_mode) else 'no ordinary file'}")
        if about.st_size > most:
            raise UserError(f"{path} has {about.st_size:,} bytes; files of its kind are read up to {most:,}")
        return path.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is not UTF-8 (byte {e.start})") from None
    # UserError is a ValueError, which the next clause would catch.
    except (FileNotFoundError, UserError):
        raise
    except (OSError, ValueError) as e:  # ValueError: a name with a NUL in it
        raise UserError(f"{path} can't be read: {getattr(e, 'strerror', None) or e}") from None


def check_shape(value: object, shape: type[T] | Shape, where: str) -> T:
    """`value`, if it has the shape and stays within the limits; UserError names the first key that does not."""
    if reason := _excess(value) or _misfit(value, shape, ""):
        raise UserError(f"{where}: {reason}")
    return cast(T, value)


def _excess(value: object) -> str | None:
    """Nesting, numbers and characters that later code could not take, whatever the shape."""
    level: list[object] = [value]
    # A level at a time and not by recursion, for which Python has about 1,000 frames.
    for _ in range(DEEPEST + 1):
        below: list[object] = []
        for node in level:
            if isinstance(node, dict):
                below += [k for k in node if isinstance(k, str)]
                # Only the number is let through: anything inside of a list there is looked at.
                below += [v for k, v in node.items() if k != NO_LIMIT or isinstance(v, list | dict | str)]
            elif isinstance(node, list):
                below += node
            elif isinstance(node, str):
                try:
                    node.encode("utf-8")
                except UnicodeEncodeError:
                    return "holds half of a surrogate pair (\\ud800 to \\udfff), which is no character"
            elif isinstance(node, int) and abs(node) >= LARGEST:  # Python's ints have no end, a tensor's do
                return f"holds a whole number of {len(str(abs(node)))} digits; at most {LARGEST:,} is read"
        if not below:
            return None
        level = below
    return f"nested more than {DEEPEST} levels deep"


def _misfit(value: object, shape: Shape, key: str) -> str | None:
    """Why a value is not of a shape, with the key in front; None if it is."""
    test = _SHAPES.get(typing.get_origin(shape) or shape)
    # isinstance refuses a TypedDict.
    if typing.is_typeddict(shape):
        return _typed_dict(value, cast(type, shape), key)
    if test is not None:
        return test(value, shape, key)
    if shape is Any:
        return None
    # JSON writers leave the .0 out: 1e-5 and 1 are numbers of one key.
    if shape is float:
        shape = (int, float)
    wanted = cast("tuple[type, ...]", shape if isinstance(shape, tuple) else (shape,))
    # To isinstance True is an int, but a file that says true where a number belongs is wrong.
    fits = isinstance(value, wanted) and (not isinstance(value, bool) or bool in wanted)
    return None if fits else _must(key, NAMES.get(wanted[-1], str(wanted[-1])), value)


def short_repr(value: object, most: int = 60) -> str:
    """A value of a file as an error shows it, on one line and cut short."""
    if isinstance(value, str) and len(value) > most:
        return repr(f"{value[: most - 3]}...")
    text = repr(value)
    # The two quotes of repr.
    return text if len(text) <= most + 2 else f"{text[: most - 3]}..."


def _must(key: str, wanted: str, value: object) -> str:
    kind = NAMES.get(type(value), type(value).__name__) + " " if isinstance(value, dict | list) else ""
    return f"{key + ' ' if key else ''}must be {wanted}, but is {kind}{short_repr(value)}"


def _inner(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)


def _dict(value: object, shape: Shape, key: str) -> str | None:
    if not isinstance(value, dict):
        return _must(key, "an object", value)
    of = typing.get_args(shape)
    return _first(_misfit(v, of[1], _inner(key, k)) for k, v in value.items()) if of else None


def _list(value: object, shape: Shape, key: str) -> str | None:
    if not isinstance(value, list):
        return _must(key, "a list", value)
    of = typing.get_args(shape)
    return _first(_misfit(v, of[0], f"{key}[{i}]") for i, v in enumerate(value)) if of else None


def _union(value: object, shape: Shape, key: str) -> str | None:
    reasons = [_misfit(value, s, key) for s in typing.get_args(shape)]
    if None in reasons:
        return None
    # Of a value of the right kind it is said what inside it is wrong; else the kinds that it may be.
    of = [s for s in typing.get_args(shape) if s is not type(None)]
    alike = of if len(of) == 1 else [s for s in of if isinstance(value, list | dict) and isinstance(value, _kind(s))]
    if len(alike) == 1:
        return reasons[typing.get_args(shape).index(alike[0])]
    return _must(key, " or ".join(NAMES.get(typing.get_origin(s) or s, "an object") for s in of), value)


def _kind(shape: Shape) -> type:
    origin = typing.get_origin(shape) or shape
    return dict if typing.is_typeddict(origin) else origin if isinstance(origin, type) else object


def _literal(value: object, shape: Shape, key: str) -> str | None:
    valid = typing.get_args(shape)
    return None if value in valid else _must(key, f"one of {', '.join(map(str, valid))}", value)


def _typed_dict(value: object, shape: type, key: str) -> str | None:
    if not isinstance(value, dict):
        return _must(key, "an object", value)
    # Not __required_keys__ alone: where annotations are texts (from __future__), it knows nothing of NotRequired.
    for name, hint in typing.get_type_hints(shape, include_extras=True).items():
        optional = name not in cast(Any, shape).__required_keys__
        if typing.get_origin(hint) in (NotRequired, Required):
            optional = typing.get_origin(hint) is NotRequired
            (hint,) = typing.get_args(hint)
        if name not in value:
            if not optional:
                return f"{_inner(key, name)} is missing"
        elif reason := _misfit(value[name], hint, _inner(key, name)):
            return reason
    return None


def _first(reasons: Iterator[str | None]) -> str | None:
    return next((r for r in reasons if r is not None), None)


_SHAPES: dict[object, Callable[[object, Shape, str], str | None]] = {
    dict: _dict,
    list: _list,
    Literal: _literal,
    Union: _union,
    types.UnionType: _union,
}
