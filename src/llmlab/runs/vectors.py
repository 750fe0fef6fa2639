"""Vectors of tokens: those of a finished run, and word2vec's text format ("word v1 v2 ...", a word to a line)."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from llmlab.config.store import part_factory
from llmlab.data.words import BROKEN
from llmlab.errors import UserError
from llmlab.files import expanded
from llmlab.slots import Vocabulary

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from llmlab.data.tokenizer import Tokenizer
    from llmlab.model.model import Model
    from llmlab.slots import Objective

SPACE = re.compile(r"\s")


class Rows(NamedTuple):
    """Rows of a token table: ids (n,) int64 in ascending order, and their vectors (n, width) float32."""

    ids: Tensor
    vectors: Tensor

    @property
    def width(self) -> int:
        return self.vectors.shape[1]


def name(token: str) -> str:
    """A token as a line of the text format can begin with it: white space, which ends a word there, as \\u0020."""
    return SPACE.sub(lambda m: f"\\u{ord(m[0]):04x}", token)


def names(tokenizer: Tokenizer) -> dict[str, int]:
    """Ids by name, of all tokens."""
    tokens = sorted(tokenizer.inner.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    return {name(token): i for token, i in tokens}


def words(tokenizer: Tokenizer) -> dict[str, int]:
    """Ids by the word that a token spells behind a space (of byte-level BPE `the` is that of `Ġthe`), where there is one."""
    found: dict[str, int] = {}
    special = {*tokenizer.special.values(), *tokenizer.inner.get_added_tokens_decoder()}
    for i in sorted(tokenizer.inner.get_vocab(with_added_tokens=False).values()):
        # The second of two: SentencePiece's decoder drops the space in front of a text.
        text = "" if i in special else tokenizer.decode([i, i])
        word = text[len(text) // 2 :]
        if word.startswith(" ") and word[1:] and not SPACE.search(word[1:]) and BROKEN not in word:
            found.setdefault(word[1:], i)
    return found


def begin(start: str, tokenizer: Tokenizer) -> Rows:
    """The vectors that `start`, the folder of a run or a file in the text format, has for tokens of this tokenizer.

    Tokens are matched by name; one whose name is not there takes the vector of the word that it spells.
    UserError where not one is there.
    """
    path, said = expanded(start), f"init_from.embedding={start}"
    # The later of two wins.
    known = [(word, i) for of in (words(tokenizer), names(tokenizer)) for word, i in of.items()]
    if path.is_file():
        found = read(path, {word for word, _ in known}, said)
    else:
        table, theirs = of_run(path)
        found = {word: table[i] for word, i in names(theirs).items()}
    rows = {i: found[word] for word, i in known if word in found}
    if not rows:
        raise UserError(
            f"{said}: none of its words is a token of this vocabulary; name the tokenizer that has them with "
            "tokenizer=file tokenizer.path=FILE"
        )
    ids = sorted(rows)
    return Rows(torch.tensor(ids), torch.stack([rows[i] for i in ids]))


# ---------------------------------------------------------------- runs


def of_run(run: str | Path) -> tuple[Tensor, Tokenizer]:
    """(vectors of all tokens (V, width) float32, tokenizer) of a run's newest sound checkpoint."""
    from llmlab.runs.folder import home, load, load_model

    model, tokenizer = load_model(run)
    return of_model(model, objective(load(home(run))[0], tokenizer)), tokenizer


def objective(cfg: DictConfig, tokenizer: Tokenizer) -> Objective:
    """The objective of a run, without its text."""
    vocabulary = Vocabulary(tokenizer.vocab_size, tokenizer.special, text=lambda i: tokenizer.decode([i]))
    made: Objective = part_factory(cfg, "objective")(vocabulary, cfg.data.seq_len)
    return made


@torch.no_grad()
def of_model(model: Model, objective: Objective | None = None) -> Tensor:
    """(V, width) float32: as the objective gives them that made them (its `vectors`), else the table of the first stack."""
    give = getattr(objective, "vectors", None)
    table: Tensor = model.all_stacks()[0].embedding.weight if give is None else give(model)
    return table.detach().float()


def of_words(model: Model, chosen: Sequence[str], tokenizer: Tokenizer, objective: Objective | None) -> Tensor:
    """(n, width) float32: vectors of words, of any where the objective spells them. UserError for words without one."""
    if spelled := getattr(objective, "spelled", None):
        return cast(Tensor, spelled(model, chosen)).float()
    known = {**words(tokenizer), **names(tokenizer)}
    if unknown := [word for word in chosen if word not in known]:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise UserError(
            f"{', '.join(map(repr, unknown[:3]))}{more}: no token of the run; of other words objective=fasttext has vectors"
        )
    return of_model(model, objective)[[known[word] for word in chosen]]


# ---------------------------------------------------------------- the text format


def read(path: Path, wanted: Container[str], said: str) -> dict[str, Tensor]:
    """Vectors of the wanted words that a file has, of each its first. UserError names the line that can't be read.

    The file is read once, in a stream; of words that are not wanted nothing is kept. With or without a first line
    "words width".
    """
    found: dict[str, Tensor] = {}
    width = 0
    try:
        with path.open("rb") as f:
            for number, line in _lines(f):
                if not width:
                    width = line.count(b" ")
                # From behind: some published files have words with spaces in them.
                word, *numbers = line.rsplit(b" ", width)
                text = word.decode("utf-8", errors="replace")
                if width < 1 or len(numbers) != width:
                    raise UserError(
                        f"{said}: line {number} must be a word and {max(width, 1)} numbers with a space before each, "
                        f"but it has {len(numbers)}"
                    )
                if text not in wanted or text in found:
                    continue
                try:
                    vector = np.array(numbers, dtype=np.float32)
                except ValueError:
                    vector = np.array([np.nan])
                if not np.isfinite(vector).all():
                    raise UserError(f"{said}: line {number} has something beside numbers behind its word, {text!r}")
                found[text] = torch.from_numpy(vector)
    except OSError as e:
        raise UserError(f"{said}: {path} can't be read: {e.strerror}") from e
    return found


def _lines(f: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line without its end and white space there), but for a first line of two integers."""
    for number, line in enumerate(f, 1):
        # word2vec.c writes a space behind the last number.
        line = line.rstrip()
        if line and not (number == 1 and re.fullmatch(rb"\d+ \d+", line)):
            yield number, line


def lines(words: Sequence[str], table: Tensor) -> Iterator[str]:
    """Lines of the text format, the first of which is "words width": what gensim's KeyedVectors reads."""
    yield f"{len(words)} {table.shape[1]}\n"
    for word, vector in zip(words, table.tolist(), strict=True):
        # Nine digits give a float32 back.
        yield f"{name(word)} {' '.join(f'{x:.9g}' for x in vector)}\n"
