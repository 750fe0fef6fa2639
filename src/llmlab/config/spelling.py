"""Words of a command line as Hydra's grammar takes them, where what was meant is plain.

The grammar knows letters, digits and some signs of ASCII outside quotes. A path in Cyrillic, with an apostrophe, or one
that is spelt like a number, is quoted here; a path given for a source's name becomes `data=files data.path=PATH`.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Optional

from llmlab import registry
from llmlab.errors import UserError
from llmlab.files import expanded

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

# Keys of Hydra itself whose values are text.
FOLDERS = ("hydra.run.dir", "hydra.sweep.dir")
ONE = (*FOLDERS, "resume")  # one folder each, never several: a comma is part of its name
# The characters of ID and UNQUOTED_CHAR in Hydra's OverrideLexer.g4, and the signs of the grammar itself.
OUTSIDE = re.compile(r"""[^\w/\-\\+.$%*@?|,\[\]{}():="' \t]|[^\x00-\x7f]""")  # what no unquoted value can hold
TOKEN = re.compile(r""""[^"]*"|'[^']*'|[,\[\]{}():=]|[^,\[\]{}():="']+|.""", re.DOTALL)


def spelled(words: Sequence[str], sources: Callable[[], Sequence[str]], *, sweep: bool = False) -> list[str]:
    """The overrides `words`, each as the grammar takes it if it can be; `sources`: what data= can name.

    sweep: commas separate values, also of paths. UserError for a word that is no text.
    """
    found = []
    for word in words:
        try:
            # Python reads a byte of an argument that is no UTF-8 as half of a surrogate pair (PEP 383), which no file
            # could be written with.
            word.encode("utf-8")
        except UnicodeEncodeError:
            shown = word.encode("utf-8", "backslashreplace").decode()
            raise UserError(f"{shown}: holds a byte that is not UTF-8; rename what it names") from None
        # The first "=": Hydra's keys hold none, and a path may.
        key, equals, value = word.partition("=")
        if not equals or not value:
            found.append(word)
        elif key == "data":
            found += _data(value, sources(), sweep)
        # Words inside of words: the grammar takes no "=" in a list unless it is quoted.
        elif key.lstrip("+").startswith("models."):
            found.append(f"{key}={_model(value, sweep)}")
        else:
            found.append(_spelled(key, value, sweep, key.lstrip("+") in text_keys() or _is_text_option(key)))
    return found


def _model(value: str, sweep: bool) -> str:
    """The model of a role: words in brackets, each of them quoted, as the grammar takes no "=" in a list; or a text. sweep:
    several, between commas."""
    several = _elements(value) if sweep else [value]
    return ",".join(_one_model(v.strip()) for v in several)


def _one_model(value: str) -> str:
    if value[:1] + value[-1:] == "[]":
        words = [unquoted(w) for w in _elements(value[1:-1]) if w]
        return f"[{','.join(map(quoted, words))}]"
    return value if value[:1] in "'\"" else quoted(value)


def quoted(text: str) -> str:
    """A text in double quotes, from which Hydra's grammar reads the same text."""
    # Backslashes count as escapes only in front of a quote, the closing one included.
    return '"' + re.sub(r'(\\+)("|\Z)|"', lambda m: (m[1] or "") * 2 + ("" if m[1] and not m[2] else '\\"'), text) + '"'


def unquoted(text: str) -> str:
    """The text that the grammar reads from one in quotes; any other as it is."""
    if len(text) < 2 or text[0] != text[-1] or text[0] not in "\"'":
        return text
    return re.sub(rf"(\\+)({text[0]}|\Z)", lambda m: m[1][: len(m[1]) // 2] + m[2], text[1:-1])


def value(word: str) -> str:
    """The text that an override KEY=VALUE of a text's key gives."""
    key, _, given = word.partition("=")
    o = parsed(_spelled(key, given, False, True))
    return given if o is None else str(o.value())


@functools.lru_cache(maxsize=1024)
def parsed(word: str) -> Override | None:
    """The override, not to be changed; None where the grammar does not take it. Kept: parsing a word takes a millisecond."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None


@functools.lru_cache(maxsize=1)
def text_keys() -> frozenset[str]:
    """Keys whose values are text by the schema: paths, names."""
    from llmlab.config.schema import root

    def walk(cls: type, inside: str) -> Iterator[str]:
        for name, hint in typing.get_type_hints(cls).items():
            # Optional[str] has its two arguments in this order.
            if hint is str or typing.get_args(hint) == (str, type(None)):
                yield inside + name
            for t in (hint, *typing.get_args(hint)):
                if dataclasses.is_dataclass(t) and isinstance(t, type) and typing.get_origin(hint) is not dict:
                    yield from walk(t, f"{inside}{name}.")

    return frozenset({*FOLDERS, *walk(root(), "")})


def _is_text_option(key: str) -> bool:
    """True for an option of a part that may be any text, as a pattern."""
    slot, _, option = key.lstrip("+").partition(".")
    option = option.rpartition(".")[2]
    known = (e.options[option] for (s, _), e in registry.index().items() if s == slot and option in e.options)
    return any(o.type in (str, Optional[str]) and not o.choices for o in known)


def _spelled(key: str, value: str, sweep: bool, is_text: bool) -> str:
    word = f"{key}={value}"
    # Numbers, lists and interpolations mean what the grammar makes of them.
    if not is_text and not OUTSIDE.search(value):
        return word
    o = parsed(word)
    if o is not None:
        return f"{key}={quoted(value)}" if is_text and _other_than_typed(o, value, sweep) else word
    if is_text and (key in ONE or not sweep):
        return f"{key}={quoted(value)}"
    if parsed(attempt := f"{key}={_quoted_within(value)}") is not None:
        return attempt
    if is_text and parsed(attempt := f"{key}={','.join(_element(key, v) for v in _elements(value))}") is not None:
        return attempt
    return word


def _other_than_typed(o: Override, value: str, sweep: bool) -> bool:
    """True if a text is read as something else: "1e3" as 1000.0; "a,b" as two values where it is a file's name."""
    read: Any = o.value()
    if isinstance(read, list | dict) and _is_text_option(o.key_or_group):
        return True
    if o.is_sweep_override() or isinstance(read, list | dict):
        return o.key_or_group in ONE or (_exists(value) and not (sweep and o.is_sweep_override()))
    if isinstance(read, str):  # spaces at its ends, escapes
        return read != value and value[0] not in "\"'" and _exists(value)
    # `experiment_name=1e3` is read as 1000.0, and 1_000 as 1000; 007 stays a text.
    return isinstance(read, bool | int | float) and str(read) != value


def _quoted_within(value: str) -> str:
    """Quotes around each stretch between signs of the grammar that holds something outside of it."""
    out = ""
    for token in TOKEN.findall(value):
        inner = token.strip()
        out += token.replace(inner, quoted(inner)) if token[0] not in "\"'" and OUTSIDE.search(token) else token
    return out


def _elements(value: str) -> list[str]:
    """The values between commas, of which those inside quotes and brackets separate nothing."""
    found, depth = [""], 0
    for token in re.findall(r""""[^"]*"|'[^']*'|[,\[\]]|[^,\[\]"']+|.""", value, re.DOTALL):
        depth += (token == "[") - (token == "]")
        if token == "," and depth <= 0:
            found.append("")
        else:
            found[-1] += token
    return [v.strip() for v in found]


def _element(key: str, value: str) -> str:
    return value if parsed(f"{key}={value}") is not None else quoted(value)


def _exists(path: str) -> bool:
    return os.path.exists(expanded(path))


def _data(value: str, sources: Sequence[str], sweep: bool) -> list[str]:
    """data=VALUE, or what chooses the files at VALUE."""
    if value in sources:
        return [f"data={value}"]
    word = _spelled("data", value, sweep, True)
    o = parsed(word)
    texts = _texts(o) if o is not None else []
    names, paths = [t for t in texts if t in sources], [t for t in texts if t not in sources and _exists(t)]
    if not paths:
        return [word]
    if names:
        raise UserError(
            f"data={value}: {names[0]} is a source's name and {paths[0]} a path; a sweep goes over one kind of them, "
            f"paths by data=files data.path={paths[0]},..."
        )
    # With the quotes that it got: it is parsed once more.
    return ["data=files", f"data.path={word.partition('=')[2]}"]


def _texts(o: Override) -> list[str]:
    """The value of an override, or the values of a sweep over some that were listed."""
    read: Any = o.value()
    if o.is_sweep_override():
        # A quoted text in a sweep is still a QuotedString of Hydra's, which `value()` turns into a text only outside of
        # one.
        return [str(getattr(v, "text", v)) for v in getattr(read, "list", [])]
    return [read] if isinstance(read, str) else []
