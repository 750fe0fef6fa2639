"""Samples of random tokens in place of a corpus's, for those that ask what an objective makes of any."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from llmlab import attributes
from llmlab.data import collate
from llmlab.record_kinds import TEXT
from llmlab.slots import Objective

Array = np.ndarray


def sample(objective: Objective, tokens: Array, number: int = 0, documents: Array | None = None) -> dict[str, Any]:
    """A sample of the kind that the objective reads, made of the given tokens (seq_len + 1,), which records share.

    number: of the sample; labels alternate by it. documents: of a text, those of its tokens.
    """
    kind = attributes.get(objective, "objective", "reads")
    if kind == TEXT:
        return {"tokens": tokens, "documents": documents}
    own = tokens[:-1]
    # Two texts share the tokens, so that a record costs what a window of text does.
    half = len(own) // 2
    kinds: dict[str, dict[str, Any]] = {
        "labelled": {"tokens": own, "label": np.int64(number % 2)},
        "pairs": {"source": own[:half], "target": own[half:]},
        "chat": {"messages": [own[:half], own[half:]], "roles": ["user", "assistant"]},
        # The second answer is the first turned round: as long, and not equal, so that there is something to prefer.
        "preferences": {"prompt": own[:half], "answers": [own[half:], own[half:][::-1]]},
        "prompts": _answered(objective, own),
    }
    return kinds[kind]


def _answered(objective: Objective, tokens: Array) -> dict[str, Any]:
    """A prompt and an answer as long as one may be, with the log-probabilities of a model that knows nothing yet."""
    rollout = getattr(objective, "rollout", None)
    # An answer that leaves no room for a prompt would be a sample of nothing.
    longest = len(tokens) // 2 if rollout is None or rollout.max_new >= len(tokens) else rollout.max_new
    prompt, answer = tokens[: len(tokens) - longest], tokens[len(tokens) - longest :]
    drawn = {"log_probabilities": np.full(len(answer), -5.0), "advantage": 1.0, "reward": 1.0}
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
