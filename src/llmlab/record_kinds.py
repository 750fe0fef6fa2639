"""The kinds of record that an objective can read, and the fields of each.

The one table of them: the reader, the keys of `data.fields`, the arrays on disk and the samples follow it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Shape = Literal[
    "text",
    "label",
    "messages",
    "texts",
    "words",
    "labels",
    "votes",
    "share",
    "answer",
    "place",
    "which",
    "flag",
    "numbers",
]


@dataclass(frozen=True)
class Field:
    """A field of a record.

    shape: "text"; "label", a text or a whole number; "messages", a list of {"role", "content"}; "texts", a list of two or more;
    "words", a list of texts, and "labels", one for each; "votes", a list of labels, null where a voter abstains; "share", a
    number from 0 to 1; "answer", a text that stands in another field; "place", a number of characters; "which", the number of
    one of "texts"; "flag", true or false; "numbers", a list of one for each of "texts". also: other keys under which it is
    looked for. parts: keys of texts that make the list where it is not there. turns: keys of texts that make a conversation
    where there are no messages. cut: the end at which it is shortened in a record that is too long. named: it is read where
    `data.fields` names it alone.
    """

    name: str
    shape: Shape = "text"
    required: bool = True
    also: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    turns: tuple[str, ...] = ()
    cut: Literal["start", "end"] = "end"
    named: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys that may hold it or a part of it."""
        return (self.name, *self.also, *self.parts, *self.turns)


@dataclass(frozen=True)
class Kind:
    """A kind of record. keeps_rest: its other keys are kept too, as they are. whole: a record is one target, whatever its
    number of tokens, so that losses under different tokenizers are of the same thing.
    """

    name: str
    fields: tuple[Field, ...]
    keeps_rest: bool = False
    whole: bool = False

    def __str__(self) -> str:
        """Words for what a record of it holds: "labelled records (text, label; optional text_b)"."""
        needed = [" and ".join(f.parts) or f.name for f in self.fields if f.required]
        optional = [f.name for f in self.fields if not f.required and not f.named]
        more = f"; optional {', '.join(optional)}" if optional else ""
        return f"{NOUNS.get(self.name, self.name + ' records')} ({', '.join(needed)}{more})"


NOUNS = {
    "pairs": "pairs",
    "chat": "conversations",
    "preferences": "preferences",
    "rated": "rated answers",
    "prompts": "prompts",
    "tagged": "words with labels",
    "questions": "questions",
    "choices": "questions with choices",
    "similar": "pairs of similar texts",
}
LABELLED = ("labelled", "tagged")  # kinds whose labels are classes
ANSWER = "assistant"  # the role whose messages are learnt
TURNS = ("prompt", "completion", "instruction", "input", "output", "system")
TEXT = "text"  # no records: windows over documents
KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "labelled",
            (
                Field("text", also=("text_a",)),
                Field("text_b", required=False),
                # Before the label, which they may stand in for.
                Field("votes", "votes", required=False),
                Field("label", "label"),
                Field("confidence", "share", required=False),
            ),
            # A class is one target, whatever the tokenizer makes of its text.
            whole=True,
        ),
        # "tokens" and "ner_tags" are the keys of CoNLL-2003 as data sets have it.
        Kind(
            "tagged", (Field("words", "words", also=("tokens",)), Field("labels", "labels", also=("tags", "ner_tags")))
        ),
        # SQuAD's fields, without its lists of answers. Without an answer there is none in the context (SQuAD 2).
        Kind(
            "questions",
            (
                Field("question"),
                Field("context"),
                Field("answer", "answer", required=False),
                Field("start", "place", required=False, also=("answer_start",)),
            ),
            whole=True,
        ),
        Kind(
            "choices",
            (Field("question"), Field("choices", "texts"), Field("answer", "which", also=("label",))),
            whole=True,
        ),
        Kind(
            "similar",
            (Field("text", also=("text_a",)), Field("positive", also=("text_b",)), Field("negative", required=False)),
            whole=True,
        ),
        Kind("pairs", (Field("source"), Field("target"))),
        # "conversations" is ShareGPT's key, "instruction", "input" and "output" are Alpaca's, "prompt" and "completion" TRL's.
        Kind("chat", (Field("messages", "messages", also=("conversations",), turns=TURNS),)),
        # Ranked, the best first. A prompt loses its beginning, as what is nearest to the answer matters most.
        Kind(
            "preferences",
            # "chosen" and "rejected" are the keys of Anthropic's hh-rlhf and of TRL.
            (
                Field("prompt", cut="start"),
                Field("answers", "texts", parts=("chosen", "rejected")),
                # Read where they are asked for alone: many files have such columns, and with ties pairs are left out.
                Field("scores", "numbers", required=False, parts=("score_chosen", "score_rejected"), named=True),
                Field("ranks", "numbers", required=False, named=True),
            ),
            whole=True,
        ),
        # "completion" and "label" are the keys of TRL's unpaired preferences.
        Kind(
            "rated",
            (
                Field("prompt", cut="start"),
                Field("answer", also=("completion",)),
                Field("good", "flag", also=("label",)),
            ),
            whole=True,
        ),
        # The rest is what a reward judges an answer by.
        Kind("prompts", (Field("prompt", cut="start"),), keeps_rest=True, whole=True),
    )
}
KEYS = tuple(dict.fromkeys(key for kind in KINDS.values() for f in kind.fields for key in f.keys))
