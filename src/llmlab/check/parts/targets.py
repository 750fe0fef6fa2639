"""What an objective asks for can't be read off what it shows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmlab import attributes
from llmlab.check import learning
from llmlab.check.parts.fixtures import tested_part
from llmlab.check.subject import VOCABULARY, CheckFailed, NotApplicable, Subject
from llmlab.data import stand_in

FIRST_SPECIAL = VOCABULARY - 8  # ids below this are no special tokens, but for those at the end of a long list
MIN_TARGETS = 150  # at least so many are asked, in SAMPLES at most
MAX_SAMPLES = 60


def hidden(subject: Subject) -> None:
    """What the model says of a target does not change with the token that is its answer, but for a share that is `shown`."""
    tested_part(subject, "objective")
    made = learning.build_objective(subject)
    shown, every, read = attributes.of(made, "objective", "shown"), 0, 0
    for batch in _distinct_token_batches(subject, made):
        labels = batch.pop("labels")[0].tolist()
        if not isinstance(labels, list):
            raise NotApplicable("its target is the class of a text, and no token of it")
        for place in (place for place, label in enumerate(labels) if 0 <= label < FIRST_SPECIAL):
            every += 1
            read += _depends_on_answer(subject.model, batch, place, labels[place])
        if every >= MIN_TARGETS:
            break
    if not every:
        raise CheckFailed("it has no target in a sample")
    if read > every * shown + 4 * math.sqrt(every * shown * (1 - shown)):  # four deviations of chance
        raise CheckFailed(
            f"{read} of {every} targets can be read off: the token that is the answer changes what is said of them, "
            f"and {shown:.0%} are shown on purpose"
        )


def _distinct_token_batches(subject: Subject, made: Any) -> Iterator[dict[str, Tensor]]:
    """Batches of one sample as the objective prepares it, in which no ordinary token stands twice."""
    chance = np.random.default_rng(0)
    for _ in range(MAX_SAMPLES):
        tokens = chance.permutation(FIRST_SPECIAL)[: learning.sample_length(subject) + 1]
        batch = stand_in.batch(made, tokens[None], chance)
        yield batch | subject.read_by_parts(batch["ids"].shape[1], 1)


@torch.no_grad()
def _depends_on_answer(model: Any, batch: dict[str, Tensor], place: int, answer: int) -> bool:
    """Whether what is said at `place` changes when another token stands wherever the answer does."""
    texts: dict[str, Tensor] = {name: batch[name] for name in ("ids", "source_ids") if name in batch}
    changed = {name: text.where(text != answer, (answer + 1) % FIRST_SPECIAL) for name, text in texts.items()}
    if all(torch.equal(changed[name], text) for name, text in texts.items()):
        return False
    other: dict[str, Tensor] = {**batch, **changed}
    one, another = model(batch).hidden[0, place], model(other).hidden[0, place]
    return bool((one - another).abs().max() > 1e-5 * (1 + one.abs().max()))
