"""Tokens as they come, told as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmlab.data.tokenizer import Tokenizer


class Teller:
    """The text of a sample as its tokens come: whole characters only, and nothing of a stop string, nor of what may yet
    become one.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.ids: list[int] = []
        self.before = ""  # what has been told
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that can be shown now, often none."""
        if self.stopped:
            return ""
        self.ids.append(token)
        # All ids anew: SentencePiece-like decoders drop the space before the first
        # token of what they are given, so pieces decoded apart do not add up.
        text = self.tokenizer.decode(self.ids)
        # A byte-level token may be a part of a character, which tokenizers decodes to U+FFFD until the rest has come.
        if text.endswith("\ufffd") or not text.startswith(self.before):  # a character is not yet whole
            return ""
        return self._tell(text, last=False)

    def rest(self) -> str:
        """The text that was held back, now that no more tokens come."""
        text = self.tokenizer.decode(self.ids)
        return self._tell(text, last=True) if not self.stopped and text.startswith(self.before) else ""

    def _tell(self, text: str, last: bool) -> str:
        found = [at for at in (text.find(s, len(self.before)) for s in self.stop) if at >= 0]
        self.stopped = bool(found)
        end = min(found) if found else len(text) if last else len(text) - self._begun(text)
        piece = text[len(self.before) : end]
        self.before += piece
        return piece

    def _begun(self, text: str) -> int:
        """Length of the longest end of the text with which a stop string begins."""
        fresh = text[len(self.before) :]
        return max(
            (n for s in self.stop for n in range(1, len(s)) if n <= len(fresh) and fresh.endswith(s[:n])), default=0
        )
