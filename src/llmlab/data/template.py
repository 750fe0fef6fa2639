"""A tokenizer's chat template: messages -> the text that the model was trained to answer. Jinja, in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from llmlab.data.special import config_of, read
from llmlab.errors import UserError

if TYPE_CHECKING:
    from llmlab.data.tokenizer import Tokenizer

FILE = "chat_template.jinja"
Message = Mapping[str, str]  # role and content


class Template:
    """`render` gives what transformers' apply_chat_template gives: its environment, the names of the special tokens.

    The template is a stranger's program: the sandbox lets it read the messages, and neither change nor call what is Python's.
    """

    def __init__(self, source: str, tokens: Mapping[str, str], where: str = "the tokenizer"):
        self.tokens, self.where = dict(tokens), where
        try:
            self.inner = _environment().from_string(source)
        except Exception as e:  # of the parser, which a template can make raise whatever it likes
            raise UserError(f"{where}: its chat template can't be read: {_line(e)}") from None

    @classmethod
    def of(cls, beside: Mapping[str, str], where: str) -> Template:
        """The template among the files beside a tokenizer.json (name -> content). UserError where there is none."""
        found: Any = beside[FILE] if FILE in beside else config_of(beside, where).get("chat_template")
        if isinstance(found, list):  # several, by name
            found = {t["name"]: t["template"] for t in found}
        if isinstance(found, dict):
            found = found.get("default")
        if not found:
            raise UserError(f"{where}: its tokenizer has no chat template, so what it writes is a text and no answer")
        return cls(found, read(beside, where).names, where)

    def render(self, messages: Sequence[Message], *, answer: bool = True) -> str:
        """The conversation as one text, special tokens by name; `answer`: up to where the next answer begins."""
        given = [dict(m) for m in messages]
        try:
            return self.inner.render(
                messages=given, tools=None, documents=None, add_generation_prompt=answer, **self.tokens
            )
        except Exception as e:  # raise_exception, or a fault of the template
            raise UserError(f"{self.where}: its chat template says: {_line(e)}") from None

    def ends(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The ids that end an answer: those that end a text, and the eos that the tokenizer's own files name."""
        own = tokenizer.inner.token_to_id(self.tokens.get("eos_token", ""))
        return tuple(dict.fromkeys([*tokenizer.stops, *([] if own is None else [own])]))


def _line(e: Exception) -> str:
    return " ".join(str(e).split()) or type(e).__name__


@lru_cache
def _environment() -> Any:
    import jinja2
    import jinja2.ext
    import jinja2.utils
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """{% generation %}: marks what an assistant says. Here it says it."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

        def _said(self, caller: Any) -> str:
            return caller()

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    class Namespace(jinja2.utils.Namespace):
        """Jinja's lets a template set attributes of any name, those by which Python's insides are reached too."""

        def __init__(*args: Any, **values: Any) -> None:  # "self" is a name like any other
            self, given = args[0], dict(*args[1:], **values)
            jinja2.utils.Namespace.__init__(self, {_checked(name): value for name, value in given.items()})

        def __setitem__(self, name: str, value: Any) -> None:
            super().__setitem__(_checked(name), value)

    def _checked(name: str) -> str:
        if str(name).startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace can't have {name}")
        return name

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = tojson  # jinja's own escapes HTML
    made.globals |= {"raise_exception": raise_exception, "namespace": Namespace}
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made
