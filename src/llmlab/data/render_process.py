"""The process in which chat templates are rendered: a stranger's program in Jinja's sandbox, with limits of its own.

A script that imports nothing of llmlab, so that it starts in a tenth of a second. Each line of standard input is a request,
each line of standard output its answer; `llmlab.data.renderer` is the other end.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

try:
    import resource
except ImportError:  # not a POSIX system
    resource = None  # type: ignore[assignment]

import jinja2
import jinja2.ext
import jinja2.utils
from jinja2.sandbox import ImmutableSandboxedEnvironment

LONGEST_LINE = 300


class TooLong(Exception):
    """More text than was allowed."""


def main() -> None:
    """Answer requests until there are no more. Arguments: the bytes of memory that may be had, and seconds a request."""
    memory, seconds = int(sys.argv[1]), float(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a chat stops the answer, not this process
    if resource is not None:
        with contextlib.suppress(ValueError, OSError):  # macOS refuses
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    for line in sys.stdin:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 2 * seconds + 1)  # its default action ends a process without a parent
        answer = json.dumps(_answer(json.loads(line)))
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        # A pipe's stdout is buffered by block: the other end would wait for 8 kB.
        print(answer, flush=True)


def _answer(request: Mapping[str, Any]) -> dict[str, str]:
    """{"text"}, or what is wrong: {"unreadable"} of the template's syntax, {"failed"} of its run, {"limit"}."""
    try:
        template = _template(request["source"])
    except MemoryError:
        return {"limit": "memory"}
    except Exception as e:  # of the parser, which a template can make raise whatever it likes
        at = getattr(e, "lineno", None)
        return {"unreadable": f"line {at}: {_line(e)}" if isinstance(at, int) else _line(e)}
    if request["values"] is None:  # only whether it can be read
        return {"text": ""}
    try:
        return {"text": _rendered(template, request["values"], request["longest"])}
    except MemoryError:
        return {"limit": "memory"}
    except TooLong:
        return {"limit": "length"}
    except Exception as e:  # raise_exception, or a fault of the template
        return {"failed": _line(e)}


def _rendered(template: jinja2.Template, values: Mapping[str, Any], longest: int) -> str:
    pieces, length = [], 0
    # Not render(), which joins all of the output before its length could be looked at.
    for piece in template.generate(values):
        pieces.append(piece)
        length += len(piece)
        if length > longest:
            raise TooLong
    return "".join(pieces)


def _line(e: Exception) -> str:
    return " ".join(str(e)[: 4 * LONGEST_LINE].split())[:LONGEST_LINE] or type(e).__name__


@lru_cache(8)
def _template(source: str) -> jinja2.Template:
    return _environment().from_string(source)


@lru_cache
def _environment() -> jinja2.Environment:
    """The environment of transformers' apply_chat_template. The sandbox lets a template read the messages, and neither
    change nor call what is Python's.
    """

    class Generation(jinja2.ext.Extension):
        """{% generation %}: marks what an assistant says. Here it says it."""

        # transformers counts these tokens for a loss mask; a template that marks them has to be read all the same.
        tags = {"generation"}

        def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

        def _said(self, caller: Callable[[], str]) -> str:
            return caller()

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    # The arguments of transformers' filter: a template may pass any of them by name.
    def tojson(
        value: object,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    class Namespace(jinja2.utils.Namespace):
        """Jinja's lets a template set attributes of any name, those by which Python's insides are reached too."""

        # `self` is positional only, for a template may give a value that name.
        def __init__(self, /, *given: Mapping[str, object], **values: object) -> None:
            super().__init__({_checked(name): value for name, value in dict(*given, **values).items()})

        def __setitem__(self, name: str, value: object) -> None:
            super().__setitem__(_checked(name), value)

    def _checked(name: str) -> str:
        if str(name).startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace can't have {name}")
        return name

    # The blocks' own lines leave nothing: templates are written for transformers' `_compile_jinja_template`, which sets
    # both.
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    # Jinja's own escapes <, >, & and ' for HTML, and all that is not ASCII.
    made.filters["tojson"] = tojson
    made.globals |= {"raise_exception": raise_exception, "namespace": Namespace}
    # LLaMA 3.2's template asks for today's date by it.
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


if __name__ == "__main__":
    main()
