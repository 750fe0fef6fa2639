"""`llmlab chat`: a conversation with a model that has a chat template."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmlab.commands.arguments import either, parse
from llmlab.commands.generate import MOST, Drawing, unescaped
from llmlab.commands.teller import Teller
from llmlab.errors import UserError

if TYPE_CHECKING:
    from llmlab.data.template import Template
    from llmlab.data.tokenizer import Tokenizer
    from llmlab.decoding.sampling import Sampling
    from llmlab.model.model import Model

USAGE = """\
llmlab chat run=FOLDER|hf=FOLDER [system=TEXT] [KEY=VALUE ...]

A conversation with a Hugging Face checkpoint (hf=FOLDER, hf=ORG/NAME, or a NAME from llmlab fetch), or with a run whose
tokenizer has a chat template. Answers are printed while they are generated. Ctrl-C stops an answer, /clear starts a new
conversation, /quit or Ctrl-D ends. If standard input is not a terminal, each line is a message and only answers are printed.

  system=TEXT              the system message
  max_new=512              most tokens of an answer
  seed=1                   the same seed and lines give the same answers
  stop=TEXT                end an answer before this text; may be given several times

and as in llmlab generate: temperature=0.8 (0 is greedy), top_k, top_p=0.95, min_p, repetition_penalty."""
HINT = "Ctrl-C stops an answer, /clear begins anew, /quit or Ctrl-D ends."


@dataclass
class Arguments(Drawing):
    system: str | None = None
    max_new: int = 512


def main(argv: Sequence[str]) -> int | None:
    if "-h" in argv or "--help" in argv:
        print(USAGE)
        return 0
    a = parse(argv, Arguments, "chat")
    if not 1 <= a.max_new <= MOST["max_new"]:
        raise UserError(f"max_new={a.max_new} must be at least 1 and at most {MOST['max_new']:,}")
    if "" in a.stop:
        raise UserError("stop= must name a text that the answer ends before")
    either(a.run, a.hf, "chat")

    from llmlab.runs.folder import load_given

    sampling = a.sampling()
    where = f"hf={a.hf}" if a.hf is not None else f"run={a.run}"
    model, tokenizer = load_given(a.run, a.hf)
    # The template is read before the first line is asked for: a tokenizer without one should say so at once.
    chat = Chat(model, tokenizer, where, system=a.system, max_new=a.max_new, sampling=sampling, stop=unescaped(a.stop))
    if sys.stdin.isatty():
        print(f"{where}: {sum(p.numel() for p in model.parameters()) / 1e6:,.1f}M parameters. {HINT}")
    for line in _lines():
        if line == "/quit":
            break
        if line == "/clear":
            chat.clear()
        # Letters alone, as a message may begin with a path (/etc/hosts) or a number (/2).
        elif line.startswith("/") and line[1:].isalpha() and sys.stdin.isatty():
            print(f"{line}: there is no such command; /clear and /quit are")
        elif line:
            _answer(chat, line, a.seed)
    return 0


def _lines() -> Iterator[str]:
    """The line that is typed, without the white space around; on a terminal after a prompt, and Ctrl-C only clears the line."""
    if not sys.stdin.isatty():
        try:
            yield from map(str.strip, sys.stdin)
        except UnicodeDecodeError as e:
            raise UserError(f"standard input is not UTF-8 (byte {e.start})") from None
        return
    # Python for Windows comes without readline.
    with suppress(ImportError):
        import readline  # noqa: F401  (gives input() the arrow keys)
    while True:
        try:
            yield input("> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print(f"\n({HINT})")


def _answer(chat: Chat, line: str, seed: int) -> None:
    typed = sys.stdin.isatty()
    try:
        # Closed at once, also by Ctrl-C: the generator remembers the unfinished
        # answer in its `finally`, and a traceback would keep it open.
        with closing(chat.answer(line, seed + len(chat.messages))) as pieces:
            for piece in pieces:
                # On a terminal Python writes at each line break only, and pieces of an answer have none.
                print(piece, end="", flush=True)
    except KeyboardInterrupt:
        if not typed:
            raise
    except UserError as e:
        if not typed:
            raise
        print(f"error: {e}", end="", file=sys.stderr, flush=True)
    print(flush=True)
    if typed and chat.ended == "length":
        print(f"(cut off after max_new={chat.max_new} tokens)")
    if typed and (note := chat.too_long()):
        print(f"({note})")


class Chat:
    """A conversation so far, and the model that answers. `ended`: why the last answer did (eos, stop, length, positions)."""

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        where: str,
        *,
        system: str | None = None,
        max_new: int = 512,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
    ):
        from llmlab.data.template import Template
        from llmlab.decoding.session import Session

        self.tokenizer, self.max_new, self.sampling, self.stop = tokenizer, max_new, sampling, tuple(stop)
        self.template: Template = Template.of(tokenizer, where)
        self.session = Session(model)
        self.first = [{"role": "system", "content": system}] if system is not None else []
        self.messages: list[dict[str, str]] = []
        self.ended = ""
        self.ends = self.template.ends(tokenizer)
        if self.first:  # a template that knows no such role says so now
            self.template.render([*self.first, {"role": "user", "content": "?"}])

    def clear(self) -> None:
        self.messages.clear()
        self.session.clear()

    def answer(self, text: str, seed: int = 1) -> Generator[str, None, None]:
        """The answer to `text`, a piece at a time. One that is stopped is remembered as far as it came."""
        asked = {"role": "user", "content": text}
        prompt = self.tokenizer.encode_marked(self.template.render([*self.first, *self.messages, asked]))
        teller, why = Teller(self.tokenizer, self.stop), [""]
        self.ended = ""
        try:
            ids = self.session.write(
                prompt,
                max_new=self.max_new,
                sampling=self.sampling,
                seed=seed,
                stop=self.ends,
                start=self.tokenizer.special.get("pad"),
                vocabulary=self.tokenizer.vocab_size,
                ended=why,
            )
            with closing(ids):
                for token in ids:
                    if piece := teller.add(token):
                        yield piece
                    if teller.stopped:
                        why[0] = "stop"
                        break
            if piece := teller.rest():
                yield piece
        finally:
            self.ended = why[0]
            if teller.before or self.ended:
                self.messages += [asked, {"role": "assistant", "content": teller.before}]

    def too_long(self) -> str | None:
        """A note where the conversation is longer than the model was made for."""
        most = self.session.model.sizes.max_positions
        n = len(self.session.ids)
        return f"{n:,} tokens, but the model was made for {most:,}: /clear begins anew" if n > most else None
