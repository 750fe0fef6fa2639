"""Samples of random tokens in place of a corpus's, for those that ask what an objective makes of any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from llmlab import attributes
from llmlab.data import collate
from llmlab.record_kinds import TEXT
from llmlab.slots import Objective, Vocabulary, Words

Array = np.ndarray


def vocabulary(size: int, names: Sequence[str]) -> Vocabulary:
    """A vocabulary whose special tokens of the given names are its last ids, and of which each third token continues a word."""
    special = {name: size - 1 - i % size for i, name in enumerate(names)}

    def words() -> Words:
        ids = np.arange(size)
        ordinary = ids < size - len(names)
        return Words((ids % 3 == 2) & ordinary, ordinary)

    # Made when it is asked for: a config.json may claim any vocabulary.
    return Vocabulary(size, special, words, text=text)


def sample(objective: Objective, tokens: Array, number: int = 0, documents: Array | None = None) -> dict[str, Any]:
    """A sample of the kind that the objective reads, made of the given tokens (seq_len + 1,), which records share.

    number: of the sample; labels alternate by it. documents: of a text, those of its tokens.
    """
    kind = attributes.get(objective, "objective", "reads")
    if kind == TEXT:
        text = {"tokens": tokens, "documents": documents}
        # The same text from behind: what is read of both has no token twice where the text has none.
        other = {"other": {"tokens": tokens[::-1], "documents": documents}}
        return {**text, **(other if attributes.get(objective, "objective", "other") else {})}
    own = tokens[:-1]
    # Two texts share the tokens, so that a record costs what a window of text does.
    half = len(own) // 2
    kinds: dict[str, dict[str, Any]] = {
        "labelled": _labelled(objective, own, number),
        # Words of two tokens between a special token at each end.
        "tagged": {"tokens": own, "words": _words(len(own)), "labels": np.arange((len(own) - 1) // 2) % 2},
        # A question of the first tokens, and the rest of the text behind it.
        "questions": {
            "tokens": own,
            "span": np.array([half, min(half + number % 3, len(own) - 1)]),
            "context": np.array([min(number, half), len(own)]),
        },
        "choices": {"rows": [own, own[::-1], np.roll(own, half)][: 2 + number % 2], "answer": np.int64(number % 2)},
        # The same text turned round, and one that is neither.
        "similar": {"rows": [own[:half], own[:half][::-1], own[half:]]},
        "pairs": {"source": own[:half], "target": own[half:]},
        "chat": {"messages": [own[:half], own[half:]], "roles": ["user", "assistant"]},
        # The second answer is the first turned round: as long, and not equal, so that there is something to prefer.
        "preferences": {"prompt": own[:half], "answers": [own[half:], own[half:][::-1]]},
        "rated": {"prompt": own[:half], "answer": own[half:], "good": np.int64(number % 2)},
        "prompts": _answered(objective, own),
    }
    return kinds[kind]


def _labelled(objective: Objective, tokens: Array, number: int) -> dict[str, Any]:
    """A labelled text, or two texts where the objective has them in both orders or apart."""
    texts, half = getattr(objective, "texts", "joined"), len(tokens) // 2
    rows = {"orders": [tokens, np.roll(tokens, half)], "apart": [tokens[:half], tokens[half:]]}
    text = {"tokens": tokens} if texts == "joined" else {"rows": rows[texts]}
    return {**text, "label": np.int64(number % 2)}


def _words(n: int) -> Array:
    """(n,): the number of the word that each token is in, -1 of the first and the last."""
    words = (np.arange(n) - 1) // 2
    words[[0, n - 1]] = -1
    return words


def _answered(objective: Objective, tokens: Array) -> dict[str, Any]:
    """A prompt and an answer as long as one may be, likelier when it was drawn than to a model that knows nothing yet."""
    rollout = getattr(objective, "rollout", None)
    # An answer that leaves no room for a prompt would be a sample of nothing.
    longest = len(tokens) // 2 if rollout is None or rollout.max_new >= len(tokens) else rollout.max_new
    prompt, answer = tokens[: len(tokens) - longest], tokens[len(tokens) - longest :]
    if rollout is not None and attributes.get(objective, "objective", "together"):
        n = rollout.samples
        drawn_of_each = {"log_probabilities": [np.full(len(answer), -1.0)] * n, "truncated": [0.0] * n}
        # Each other one turned round, and each worth less than the one before.
        own = {"answers": [answer[:: 1 - 2 * (i % 2)] for i in range(n)], "reward": [1.0 / (1 + i) for i in range(n)]}
        return {"prompt": prompt, "rest": {}, **own, **drawn_of_each}
    # A better answer that has become likelier is held by its ratio's upper bound, and has no gradient.
    drawn = {"log_probabilities": np.full(len(answer), -1.0), "advantage": 1.0, "reward": 1.0}
    return {"prompt": prompt, "rest": {}, "answer": answer, **drawn}


def text(i: int) -> str:
    """A text for each id, in place of a tokenizer's: every eighth ends a sentence."""
    return "." if i % 8 == 0 else " a"


def batch(
    objective: Objective, rows: Array, rng: np.random.Generator, documents: Array | None = None
) -> dict[str, Tensor]:
    """A micro-batch of samples of rows of tokens (rows, seq_len + 1), as the objective prepares and collates them."""
    samples = [prepared(objective, row, i, rng, documents) for i, row in enumerate(rows)]
    return collated(objective, samples, rows.shape[1] - 1)


def prepared(
    objective: Objective, tokens: Array, number: int, rng: np.random.Generator, documents: Array | None = None
) -> dict[str, Any]:
    """Such a sample as the objective prepares it, packed into a window where it is to be."""
    own: Any = sample(objective, tokens, number, documents)
    packs = (
        attributes.get(objective, "objective", "collate") == "pack"
        and attributes.get(objective, "objective", "reads") != TEXT
    )
    # A pack is a list of records, here of one.
    return collate.prepare(objective, [own] if packs else own, rng)


def collated(objective: Objective, samples: list[dict[str, Any]], seq_len: int) -> dict[str, Tensor]:
    """Prepared samples as a micro-batch."""
    return collate.batch(samples, attributes.get(objective, "objective", "collate"), most=seq_len)


class StandIns:
    """Samples of full length of random ordinary tokens, `n` of them."""

    documents = False
    pad = 0

    def __init__(self, objective: Objective, n: int, seq_len: int, ordinary: int):
        self.objective, self.seq_len = objective, seq_len
        # Always the same: what is measured of a step must not follow from its tokens.
        chance = np.random.default_rng(0)
        self.rows = chance.integers(ordinary, size=(n, seq_len + 1), dtype=np.uint32).astype(np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return sample(self.objective, self.rows[i], i)

    @property
    def tokens_per_sample(self) -> float:
        return float(self.seq_len)

    def spread(self, n: int) -> list[int]:
        """The numbers of n samples."""
        return list(range(n))
