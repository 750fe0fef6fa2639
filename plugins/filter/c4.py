"""C4's filter of pages."""

from __future__ import annotations

import re
from collections.abc import Sequence

from llmlab.registry import register
from llmlab_plugins.filter._examples import word_list
from llmlab_plugins.filter._lines import checked_shares, lines

ENDS = (".", "!", "?", '"', "\u201d")
ELLIPSES = ("...", "\u2026")
CITATION = re.compile(r"\[(?:\d+|edit|citation needed)\]")
SENTENCE = re.compile(r"[.!?]+[\"'\u201d\u2019)\]]*(?=\s|$)")
POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


@register("filter", "c4")
class C4:
    """C4's rules (Raffel et al. 2020, section 2.2, arXiv:1910.10683), as a judge of documents: it removes no line.

    A page of C4 is what is left of it once lines are removed that end in no period, exclamation mark, question mark or
    quotation mark (or in an ellipsis), that have too few words, or speak of Javascript, cookies or terms of use. A document
    is dropped where C4 drops the page: for "lorem ipsum", a curly bracket, a word of the list, or too few sentences in the
    lines that are left. Besides, `lines` can ask that enough lines are left: C4 would remove the others.

    sentences: least sentences in the lines that C4 keeps; 0: no limit
    line_words: least words of such a line
    lines: least share of lines that C4 keeps
    lorem_ipsum: a document with "lorem ipsum" is dropped
    curly: a document with "{" is dropped
    terminal: C4 keeps a line only with punctuation at its end
    javascript: C4 keeps no line with "javascript"
    policies: C4 keeps no line on cookies, privacy policies and terms of use
    words: file of words or phrases, one a line, such as the "List of Dirty, Naughty, Obscene or Otherwise Bad Words"; a
        document with one of them is dropped
    """

    small = {"sentences": 1}
    telling = (
        {"sentences": 3},
        {"line_words": 8},
        {"lines": 0.8},
        {"sentences": 0, "lorem_ipsum": False},
        {"sentences": 0, "curly": False},
        {"terminal": False, "line_words": 1},
        {"javascript": False, "sentences": 2},
        {"policies": False, "sentences": 2},
    )
    files = ("words",)

    def __init__(
        self,
        *,
        sentences: int = 3,
        line_words: int = 5,
        lines: float = 0.0,
        lorem_ipsum: bool = True,
        curly: bool = True,
        terminal: bool = True,
        javascript: bool = True,
        policies: bool = True,
        words: str | None = None,
    ):
        if sentences < 0 or line_words < 0:
            raise ValueError(f"sentences={sentences} and line_words={line_words} must be at least 0")
        checked_shares(lines=lines)
        self.sentences, self.line_words, self.lines = sentences, line_words, lines
        self.lorem_ipsum, self.curly, self.terminal = lorem_ipsum, curly, terminal
        self.phrases = (("javascript",) if javascript else ()) + (POLICIES if policies else ())
        self.words = None if words is None else _any_of(word_list("words", words))

    def measure(self, texts: Sequence[str]) -> list[str | None]:
        return [self._wrong(text) for text in texts]

    def reason(self, value: str | None) -> str | None:
        return value

    def _wrong(self, text: str) -> str | None:
        if self.curly and "{" in text:
            return "with a curly bracket"
        lowered = text.lower()
        if self.lorem_ipsum and "lorem ipsum" in lowered:
            return "with lorem ipsum"
        if self.words is not None and self.words.search(lowered):
            return "with a word of the list"
        found = lines(text)
        kept = [line for line in found if self._keeps(line)]
        if self.sentences and sum(max(1, len(SENTENCE.findall(line))) for line in kept) < self.sentences:
            return f"fewer than {self.sentences} sentences in lines that C4 keeps"
        if len(kept) < self.lines * len(found):
            return f"fewer than {self.lines:.0%} of lines that C4 keeps"
        return None

    def _keeps(self, line: str) -> bool:
        if len(line.split()) < self.line_words:
            return False
        if self.terminal:
            # A marker of a citation stands behind the period.
            end = CITATION.sub("", line).rstrip() if line.endswith("]") else line
            if not end.endswith(ENDS) or end.endswith(ELLIPSES):
                return False
        lowered = line.lower()
        return not any(phrase in lowered for phrase in self.phrases)


def _any_of(words: Sequence[str]) -> re.Pattern[str]:
    # Not \b, which finds no edge beside a word that begins or ends in a symbol.
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, words))})(?!\w)")
