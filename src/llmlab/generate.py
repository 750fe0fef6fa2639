"""`llmlab generate`: a run continues a prompt, token by token."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmlab.arguments import parse
from llmlab.errors import UserError

if TYPE_CHECKING:
    from llmlab.data.tokenizer import Tokenizer

USAGE = """\
llmlab generate run=FOLDER [prompt=TEXT] [max_new=200] [temperature=0.8] [top_k=N] [top_p=0.95] [seed=1] [--json]

Continues a prompt with the newest sound checkpoint of a run. temperature=0 is greedy. Without a prompt (or with
prompt=-) it is read from standard input. The same seed gives the same text."""


@dataclass
class Arguments:
    run: str
    prompt: str | None = None
    max_new: int = 200
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = 0.95
    seed: int = 1
    cached: bool = True
    json: bool = False


def main(argv: Sequence[str]) -> int | None:
    if "-h" in argv or "--help" in argv:
        print(USAGE)
        return 0
    a = parse(argv, Arguments, "generate")
    if a.max_new < 1:
        raise UserError(f"max_new={a.max_new} must be at least 1")
    if a.prompt in (None, "-"):
        a.prompt = sys.stdin.read().removesuffix("\n")
    from llmlab.decoding.sampling import Sampling
    from llmlab.lab.folder import load_model

    sampling = Sampling(a.temperature, a.top_k, a.top_p)
    model, tokenizer = load_model(a.run)
    assert a.prompt is not None
    pieces = text(model, tokenizer, a.prompt, max_new=a.max_new, sampling=sampling, seed=a.seed, cached=a.cached)
    if a.json:
        print(json_module.dumps({"prompt": a.prompt, "text": "".join(pieces), "seed": a.seed}, ensure_ascii=False))
        return 0
    first = next(pieces, "")  # before anything is printed: a model that can't write says so here
    print(a.prompt + first, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    return 0


def text(
    model: Any, tokenizer: Tokenizer, prompt: str, *, max_new: int, sampling: Any, seed: int, cached: bool = True
) -> Iterator[str]:
    """The continuation in pieces of whole characters, as they come."""
    from llmlab.decoding.generate import generate

    special = tokenizer.special
    ids = tokenizer.encode(prompt)
    if not ids and "eos" in special:  # nothing to go on: the beginning of a text
        ids = [special["eos"]]
    stream = generate(
        model,
        ids,
        max_new=max_new,
        sampling=sampling,
        seed=seed,
        stop=special.get("eos"),
        start=special.get("pad"),
        vocabulary=tokenizer.vocab_size,
        cached=cached,
    )
    told, new = "", []
    for token in stream:
        new.append(token)
        so_far = tokenizer.decode(new)
        if so_far.startswith(told) and not so_far.endswith("\ufffd"):  # else a character is not yet whole
            yield so_far[len(told) :]
            told = so_far
    rest = tokenizer.decode(new)
    if rest.startswith(told) and len(rest) > len(told):
        yield rest[len(told) :]
