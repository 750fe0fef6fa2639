"""Tokens of finished companions: those of the run must be the same, as an objective compares scores of one id."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llmlab.config.companions import naming_role
from llmlab.data.tokenizer import Tokenizer
from llmlab.errors import UserError
from llmlab.runs import folder as run_folder

if TYPE_CHECKING:
    from llmlab.config.composed import Chosen
    from llmlab.config.spec import ModelSpec


def check(spec: ModelSpec, weights: Path | None, tokenizer: Tokenizer) -> None:
    """UserError if a finished model knows other tokens than the run's text is made of."""
    assert weights is not None
    home, theirs = _tokenizer_of(weights)
    fix = "choose its tokenizer" if theirs is None else f"tokenizer=file tokenizer.path={home} takes its tokenizer"
    size = tokenizer.vocab_size
    if size > spec.sizes.vocab_size:
        raise UserError(f"it knows {spec.sizes.vocab_size:,} tokens, but the run's tokenizer has {size:,}; {fix}")
    if theirs is None:
        # More than a table is rounded up by.
        if spec.sizes.vocab_size - size >= 64:
            raise UserError(f"it knows {spec.sizes.vocab_size:,} tokens, but the run's tokenizer has {size:,}; {fix}")
        return
    ours = tokenizer.inner.get_vocab(with_added_tokens=True)
    known = theirs.inner.get_vocab(with_added_tokens=True)
    # In the order of ids, so that the first that differs is named.
    other = next((token for token, i in sorted(known.items(), key=lambda x: x[1]) if ours.get(token) != i), None)
    if other is not None:
        here = f"is {ours[other]} in the run's" if other in ours else "is not in the run's"
        raise UserError(f"its tokenizer is another: {other!r} is {known[other]} there and {here}; {fix}")


def _tokenizer_of(weights: Path) -> tuple[Path, Tokenizer | None]:
    """The folder of a finished model, and its tokenizer if it has one."""
    foreign = run_folder.is_foreign(weights)
    home = weights if foreign else run_folder.home(weights)
    if not (home / "tokenizer.json").is_file():
        return home, None
    from llmlab.data.tokenizer import from_file

    return home, from_file(str(home), ()) if foreign else Tokenizer.load(home)


def tokens(companions: Mapping[str, Chosen]) -> int | None:
    """Tokens of a run that works with a finished model, whose tokenizer it must have; None if there is no such model."""
    for role, chosen in companions.items():
        if chosen.source is not None:
            with naming_role(role, chosen.source):
                made = _tokenizer_of(run_folder.start_of(chosen.source, tokenizer=False))[1]
            if made is not None:
                return made.vocab_size
    return None
