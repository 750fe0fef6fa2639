"""A tokenizer's chat template: messages -> the text that the model was trained to answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from llmlab.data.renderer import renderer
from llmlab.data.special import config_of, read_special
from llmlab.errors import UserError

if TYPE_CHECKING:
    from llmlab.data.record_files import Message
    from llmlab.data.tokenizer import Tokenizer

FILE = "chat_template.jinja"


class Template:
    """`render` gives what transformers' apply_chat_template gives: its environment, the names of the special tokens.

    The template is a stranger's program: it runs in a sandbox, in a process of its own, for a limited time.
    """

    def __init__(self, source: str, tokens: Mapping[str, str], where: str = "the tokenizer"):
        self.source, self.tokens, self.where = source, dict(tokens), where
        # Parsed when it is loaded: a fault of it is said before a model is read, not at the first answer.
        renderer.render(source, None, where)

    @classmethod
    def from_files(cls, beside: Mapping[str, str], where: str) -> Template:
        """The template among the files beside a tokenizer.json (name -> content). UserError where there is none."""
        source = cls._source(beside, where)
        if not source:
            raise UserError(f"{where}: its tokenizer has no chat template, so what it writes is a text and no answer")
        return cls(source, read_special(beside, where).names, where)

    @classmethod
    def of(cls, tokenizer: Tokenizer, where: str) -> Template:
        """The template beside a tokenizer. UserError where there is none."""
        found = cls.from_files(tokenizer.beside, where)
        # A tokenizer that a run has learnt has no file that names its special tokens: their roles are its own.
        own = {f"{role}_token": tokenizer.inner.id_to_token(i) for role, i in tokenizer.special.items()}
        found.tokens = {**{name: token for name, token in own.items() if token}, **found.tokens}
        return found

    @classmethod
    def among(cls, beside: Mapping[str, str]) -> bool:
        """True if there is one."""
        try:
            return bool(cls._source(beside, ""))
        except UserError:
            return False

    @staticmethod
    def _source(beside: Mapping[str, str], where: str) -> str | None:
        # transformers 5 writes the template into a file of its own, which goes before that of tokenizer_config.json.
        if FILE in beside:
            return beside[FILE]
        found = config_of(beside, where).get("chat_template")
        # Older transformers write several templates as a list of {name, template}.
        if isinstance(found, list):  # several, by name
            found = {t["name"]: t["template"] for t in found}
        # "tool_use" is the other name that transformers knows, which it takes where there are tools.
        return found.get("default") if isinstance(found, dict) else found

    def render(self, messages: Sequence[Message | Mapping[str, str]], *, answer: bool = True) -> str:
        """The conversation as one text, special tokens by name; `answer`: up to where the next answer begins.

        UserError for what the template itself refuses, and where it writes, takes or needs too much.
        """
        # apply_chat_template names both where there are none: `tools is not none` would hold of a name that is not
        # there.
        values = {
            "messages": [{"role": m["role"], "content": m["content"]} for m in messages],
            "tools": None,
            "documents": None,
        }
        return renderer.render(self.source, {**values, "add_generation_prompt": answer, **self.tokens}, self.where)

    def ends(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The ids that end an answer: those that end a text, and the eos that the tokenizer's own files name."""
        own = tokenizer.inner.token_to_id(self.tokens.get("eos_token", ""))
        return tuple(dict.fromkeys([*tokenizer.stops, *([] if own is None else [own])]))
