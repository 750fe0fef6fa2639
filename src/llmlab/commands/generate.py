"""`llmlab generate`: a run continues a prompt, token by token, or many prompts at once."""

from __future__ import annotations

import io
import json as json_module
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from llmlab.commands.arguments import either, parse
from llmlab.commands.swap import split, swapped
from llmlab.commands.teller import Teller
from llmlab.config import learned
from llmlab.errors import UserError
from llmlab.files import expanded
from llmlab.json_files import json_lines, parse_json

if TYPE_CHECKING:
    from llmlab.data.template import Template
    from llmlab.data.tokenizer import Tokenizer
    from llmlab.decoding.sampling import Sampling
    from llmlab.decoding.unmasking import Unmasking
    from llmlab.model.model import Model

USAGE = """\
llmlab generate run=FOLDER|hf=FOLDER [prompt=TEXT | prompts=FILE] [KEY=VALUE ...] [--json]

Continues a prompt with the newest sound checkpoint of a run (run=latest: of the run that began last), or with a Hugging
Face checkpoint: hf=FOLDER, hf=ORG/NAME or a NAME that llmlab fetch brought; its prompts are read as transformers reads
them, special tokens by name.
Without a prompt (or with prompt=-) it is read from standard input. prompts=FILE continues many in batches: a .txt file
with one prompt per line, or a .jsonl file of objects with the key "prompt".

  max_new=200              most new tokens
  num=1                    samples per prompt, with seed, seed + 1, ...
  seed=1                   the same seed gives the same text, in a batch too
  stop=TEXT                end before this text; may be given several times; \\n and \\t are line break and tab
  batch_size=16            prompts that are continued at once
  steps=N, block=N         of a run of objective=masked_diffusion: its new tokens are unmasked together, the surest first, in N
                           forwards (max_new of them), or N tokens at a time from left to right
  chat=true                each prompt is a user message, in the tokenizer's chat template (for a conversation: llmlab chat)
  position=, window=, kernel=, and their options: the same weights under another part (llmlab eval --help)

Sampling, applied in this order:
  repetition_penalty=1     above 1: tokens that already occur in the text become less likely (CTRL)
  temperature=0.8          0 is greedy: always the most likely token
  top_k=N                  only from the N most likely tokens
  top_p=0.95               only from the smallest set of tokens with this total probability
  min_p=P                  only from tokens with at least P times the probability of the most likely one

--json prints one object per line and sample: prompt, text, seed, and why it ended (eos, stop, length, positions)."""

MOST = {"max_new": 1 << 24, "num": 100_000, "batch_size": 100_000}
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


@dataclass
class Drawing:
    """The arguments that llmlab generate and llmlab chat share: which model, and how tokens are drawn."""

    run: str | None = None
    hf: str | None = None
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = 0.95
    min_p: float | None = None
    repetition_penalty: float = 1.0
    stop: list[str] = field(default_factory=list)
    seed: int = 1

    def sampling(self) -> Sampling:
        # Imported here: it brings torch, 1.4 s that --help and a mistyped key need not wait for.
        from llmlab.decoding.sampling import Sampling

        return Sampling(self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)


@dataclass
class Arguments(Drawing):
    prompt: str | None = None
    prompts: str | None = None
    max_new: int = 200
    num: int = 1
    batch_size: int = 16
    cached: bool = True
    steps: int | None = None
    block: int | None = None
    chat: bool = False
    json: bool = False


def main(argv: Sequence[str]) -> int | None:
    if "-h" in argv or "--help" in argv:
        print(USAGE)
        return 0
    argv, parts = split(argv)
    a = parse(argv, Arguments, "generate")
    for key, most in MOST.items():
        if not 1 <= getattr(a, key) <= most:
            raise UserError(f"{key}={getattr(a, key)} must be at least 1 and at most {most:,}")
    a.stop = unescaped(a.stop)
    if "" in a.stop:
        raise UserError("stop= must name a text that the sample ends before")
    if a.prompts is not None and a.prompt is not None:
        raise UserError("prompt and prompts can't both be given: put the prompt into the file")
    either(a.run, a.hf, "generate")
    many = a.prompts is not None or a.num > 1
    prompts = read_prompts(a.prompts) if a.prompts is not None else [_prompt(a.prompt)]

    from llmlab.runs.folder import load_given

    sampling = a.sampling()
    model, tokenizer = load_given(a.run, a.hf)
    model = swapped(model, parts)
    how = _unmasking(a, tokenizer)
    template = _template(tokenizer, a) if a.chat else None
    told = samples(
        model,
        tokenizer,
        prompts,
        max_new=a.max_new,
        sampling=sampling,
        seeds=range(a.seed, a.seed + a.num),
        stop=a.stop,
        batch_size=a.batch_size,
        cached=a.cached,
        stream=not many and not a.json,
        template=template,
        how=how,
    )
    total = len(prompts) * a.num
    wrote = False
    for i, sample in enumerate(told):
        if a.json:
            # Flushed: stdout to a pipe is written in blocks of 8 KiB, so that a reader would
            # wait for many samples. ensure_ascii would write everything but English as \uXXXX.
            print(json_module.dumps(sample.fields(), ensure_ascii=False), flush=True)
        elif many:
            print(f"--- {i + 1} of {total}" + (f", seed {sample.seed}" if a.num > 1 else ""))
            print(sample.prompt + ("\n" if a.chat else "") + sample.text, flush=True)
        else:
            print(("" if i or a.chat else sample.prompt) + sample.text, end="", flush=True)
        wrote |= bool(sample.text)
    if not many and not a.json:
        print()
    if not wrote and not a.chat and _answers(tokenizer):
        # On stderr: stdout is the text, and may be piped.
        print("note: it ended the text at once; it has a chat template, by which chat=true asks it", file=sys.stderr)
    return 0


def _unmasking(a: Arguments, tokenizer: Tokenizer) -> Unmasking | None:
    """The order of unmasking, of a run whose model writes so. UserError for steps or block of another."""
    from llmlab.decoding.unmasking import Unmasking
    from llmlab.runs import folder

    if a.run is not None:
        entry = learned.entry(folder.load(folder.home(a.run))[0])
        if entry.attribute("generates") == "unmasking":
            return Unmasking(tokenizer.special["mask"], a.steps, a.block)
    if typed := [key for key in ("steps", "block") if getattr(a, key) is not None]:
        raise UserError(
            f"{typed[0]}= is of a run of objective=masked_diffusion: this model writes a token at a time; leave it out"
        )
    return None


def _template(tokenizer: Tokenizer, a: Arguments) -> Template:
    from llmlab.data.template import Template

    return Template.of(tokenizer, f"hf={a.hf}" if a.hf is not None else f"run={a.run}")


def _answers(tokenizer: Tokenizer) -> bool:
    from llmlab.data.template import Template

    return Template.among(tokenizer.beside)


def unescaped(texts: Sequence[str]) -> list[str]:
    """With \\n, \\t, \\r and \\\\ as they are typed on a command line made characters."""
    # Not the codec unicode_escape, which takes the bytes of UTF-8 for Latin-1: "é" comes out as "Ã©".
    return [re.sub(r"\\([ntr\\])", lambda m: ESCAPES[m[1]], text) for text in texts]


def _prompt(given: str | None) -> str:
    if given not in (None, "-"):
        return str(given)
    try:
        # echo and here-strings add a line break that was not meant, and after it a model begins another line.
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError as e:
        raise UserError(f"standard input is not UTF-8 (byte {e.start}), so it is no prompt") from None


def read_prompts(path: str) -> list[str]:
    """One prompt a line of a .txt file (blank lines are none), or "prompt" of each object of a .jsonl file."""
    # dash and zsh leave the ~ of prompts=~/file as it is; bash expands it, as it takes the word for an assignment.
    file = expanded(path)
    try:
        # Some editors on Windows begin UTF-8 files with a byte order mark, which "utf-8" keeps as a character.
        text = file.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as e:
        raise UserError(f"prompts={path} is not UTF-8 (byte {e.start})") from None
    except OSError as e:
        raise UserError(f"prompts={path} can't be read: {e.strerror}") from None
    if file.suffix.lower() != ".jsonl":
        # Not splitlines, which also breaks at U+2028, U+0085 and form feeds, which a prompt may have.
        found = [line.removesuffix("\r") for line in text.split("\n") if line.strip()]
    else:
        found = []
        # newline=None reads \r\n as \n, as a file opened as text does; StringIO's own default keeps both.
        for number, line in json_lines(io.StringIO(text, newline=None)):
            row: Any = parse_json(line, Any, f"prompts={path}, line {number}")
            if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
                raise UserError(f'prompts={path}, line {number}: needs an object with a string under "prompt"')
            found.append(row["prompt"])
    if not found:
        raise UserError(f"prompts={path}: there is no prompt in it")
    return found


# ---------------------------------------------------------------- text


@dataclass
class Sample:
    """A prompt and what follows; while it is streamed, `text` is the newest piece."""

    prompt: str
    seed: int
    text: str = ""
    ended: str = ""

    def fields(self) -> dict[str, Any]:
        return {"prompt": self.prompt, "text": self.text, "seed": self.seed, "ended": self.ended}


def samples(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    max_new: int,
    sampling: Sampling,
    seeds: Sequence[int] = (1,),
    stop: Sequence[str] = (),
    batch_size: int = 16,
    cached: bool = True,
    stream: bool = False,
    template: Template | None = None,
    how: Unmasking | None = None,
) -> Iterator[Sample]:
    """One sample for each prompt and seed, prompts first, in their order. stream: of the first, a piece at a time.
    template: a prompt is what a user says, and its sample the answer. how: the tokens of a sample are unmasked together.
    """
    from llmlab.decoding.generate import fits_padding

    source = model.spec.topology == "encoder_decoder"
    if template is None:
        coded = [encode_prompt(tokenizer, p, i, len(prompts), source) for i, p in enumerate(prompts)]
        ends: Collection[int] = tokenizer.stops
    else:
        texts = [template.render([{"role": "user", "content": p}]) for p in prompts]
        coded, ends = [tokenizer.encode_marked(text) for text in texts], template.ends(tokenizer)
    wanted = [(Sample(p, seed), ids) for p, ids in zip(prompts, coded, strict=True) for seed in seeds]
    alike = how is not None or fits_padding(model, min(4096, max(map(len, coded)) + max_new))
    while wanted:
        length, n = len(wanted[0][1]), batch_size
        # Padding would change what is written, so prompts of other lengths wait for a batch of their own.
        if not alike:
            n = next((i for i, (_, ids) in enumerate(wanted[:n]) if len(ids) != length), n)
        at_once, wanted = wanted[:n], wanted[n:]
        pieces = _written(model, tokenizer, at_once, max_new, sampling, stop, ends, cached, how)
        if stream:
            ((first, _),) = at_once
            # The first piece is made before anything is printed: a model that can't write says so there.
            for (piece,) in pieces:
                yield Sample(first.prompt, first.seed, piece)
            continue
        for step in pieces:
            for (sample, _), piece in zip(at_once, step, strict=True):
                sample.text += piece
        yield from (sample for sample, _ in at_once)


def encode_prompt(tokenizer: Tokenizer, prompt: str, index: int, total: int, source: bool) -> list[int]:
    """Ids of a prompt with the tokens that begin a text. source: for an encoder."""
    try:
        ids = tokenizer.encode_source(prompt) if source else [*tokenizer.lead, *tokenizer.encode(prompt)]
    except UserError as e:
        raise UserError(f"prompt {index + 1} of {total}: {e}" if total > 1 else str(e)) from None
    # There is nothing to go on from, and behind the end of a text another begins.
    if not ids and "eos" in tokenizer.special:
        ids = [tokenizer.special["eos"]]
    return ids


def _written(
    model: Model,
    tokenizer: Tokenizer,
    at_once: Sequence[tuple[Sample, list[int]]],
    max_new: int,
    sampling: Sampling,
    stop: Sequence[str],
    ends: Collection[int],
    cached: bool,
    how: Unmasking | None,
) -> Iterator[list[str]]:
    """A list of new pieces of text a step, one for each sample; `ended` of each is set."""
    from llmlab.decoding.generate import generate_all

    ended = [""] * len(at_once)
    tellers = [Teller(tokenizer, stop) for _ in at_once]
    steps: Iterable[Sequence[int | None]]
    if how is not None:
        from llmlab.decoding.unmasking import unmask_all

        whole = unmask_all(
            model,
            [ids for _, ids in at_once],
            max_new=max_new,
            how=how,
            sampling=sampling,
            seeds=[sample.seed for sample, _ in at_once],
            stop=ends,
            vocabulary=tokenizer.vocab_size,
            ended=ended,
        )
        steps = zip_longest(*whole)
    else:
        steps = generate_all(
            model,
            [ids for _, ids in at_once],
            max_new=max_new,
            sampling=sampling,
            seeds=[sample.seed for sample, _ in at_once],
            stop=ends,
            start=tokenizer.special.get("pad"),
            vocabulary=tokenizer.vocab_size,
            cached=cached,
            ended=ended,
            forced=tokenizer.forced,
        )
    for tokens in steps:
        pieces = ["" if token is None else teller.add(token) for token, teller in zip(tokens, tellers, strict=True)]
        for i, teller in enumerate(tellers):
            if teller.stopped and not ended[i]:
                ended[i] = "stop"
        yield pieces
    yield [teller.rest() for teller in tellers]
    for (sample, _), why in zip(at_once, ended, strict=True):
        sample.ended = why
