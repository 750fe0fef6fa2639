"""Conversations as a chat template writes them: what a model reads, and what of it is an answer that it is to give.

What is an answer is found by rendering: it is what the text of the messages up to an answer has behind the text that asks for
it. So it depends on no {% generation %} tag in the template, which few have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llmlab.data.record_files import Message, Record
from llmlab.data.template import Template
from llmlab.errors import UserError
from llmlab.record_kinds import ANSWER, Kind

CONTEXT = "context"  # the name of the pieces of a conversation that are no answer


def written(record: Record, kind: Kind, template: Template) -> Record:
    """A record whose texts are as the template writes them: a conversation's messages its pieces; a prompt what a user says,
    answers with what ends them. UserError for a template by which no answer can be found."""
    if kind.name == "chat":
        pieces: list[Message] = [{"role": name, "content": text} for name, text in turns(template, record["messages"])]
        return {**record, "messages": pieces}
    asked: list[Message] = [{"role": "user", "content": record["prompt"]}]
    if kind.name == "prompts":
        return {**record, "prompt": template.render(asked)}
    if kind.name == "rated":
        pieces_of = dict(turns(template, [*asked, {"role": ANSWER, "content": str(record["answer"])}]))
        return {**record, "prompt": pieces_of[CONTEXT], "answer": pieces_of[ANSWER]}
    both = [dict(turns(template, [*asked, {"role": ANSWER, "content": a}])) for a in record["answers"]]
    return {**record, "prompt": both[0][CONTEXT], "answers": [pieces[ANSWER] for pieces in both]}


def turns(template: Template, messages: Sequence[Message]) -> Iterator[tuple[str, str]]:
    """(CONTEXT or ANSWER, text) of each piece, up to the end of the last answer. Blanks behind the mark that ends an answer
    are of what comes next: a model that stops at the mark never writes them."""
    done = left = ""
    for i, message in enumerate(messages):
        if message["role"] != ANSWER:
            continue
        asked, whole = template.render(messages[:i]), template.render(messages[: i + 1], answer=False)
        for text, longer in ((done, asked), (asked, whole)):
            if not longer.startswith(text):
                raise UserError(
                    f"{template.where}: its chat template writes what is before message {i + 1} otherwise once that is there "
                    f"({_difference(text, longer)}), so that no answer can be told from what asks for it; choose another, as "
                    "tokenizer.template=chatml"
                )
        answer, content = whole[len(asked) :], message["content"].strip()
        if not answer.strip():
            raise UserError(
                f"{template.where}: its chat template writes nothing of message {i + 1}, an answer; choose another, as "
                "tokenizer.template=chatml"
            )
        yield CONTEXT, left + asked[len(done) :]
        kept = answer.rstrip()
        if kept.endswith(content):  # no mark ends it
            kept = answer
        yield ANSWER, kept
        done, left = whole, answer[len(kept) :]


def _difference(one: str, other: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return f"{one[at : at + 24]!r} becomes {other[at : at + 24]!r}"
