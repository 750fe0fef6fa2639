"""The check of an objective that its inputs don't contain the answers."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from llmlab import attributes
from llmlab.check import learning
from llmlab.check.parts.fixtures import tested_part
from llmlab.check.subject import VOCABULARY, CheckFailed, NotApplicable, Subject
from llmlab.data import stand_in
from llmlab.model.model import Model
from llmlab.slots import Objective

FIRST_SPECIAL = VOCABULARY - 8  # special tokens are numbered from the end; only a list of over 8 reaches below this
MIN_TARGETS = 150  # at least so many are asked, in SAMPLES at most
MAX_SAMPLES = 60


def hidden(subject: Subject) -> None:
    """The output for a target does not change with the token that is its answer, except for the share that is `shown`.

    Where there is an encoder it is its source that shows an answer: what the decoder reads may tell none."""
    tested_part(subject, "objective")
    objective = learning.build_objective(subject)
    shown, every, leaks = attributes.get(objective, "objective", "shown"), 0, 0
    for batch in _distinct_token_batches(subject, objective):
        labels = batch.pop("labels")[0].tolist()
        if not isinstance(labels, list):
            raise NotApplicable("its target is the class of a text, and no token of it")
        for place in (place for place, label in enumerate(labels) if 0 <= label < FIRST_SPECIAL):
            every += 1
            leaks += _depends_on_answer(subject.model, batch, place, labels[place], ("ids", "source_ids"))
            if "source_ids" in batch and _depends_on_answer(subject.model, batch, place, labels[place], ("ids",)):
                raise CheckFailed(
                    f"the decoder reads the answer of its token {place}, which changes what is said of it"
                )
        if every >= MIN_TARGETS:
            break
    if not every:
        raise CheckFailed("it has no target in a sample")
    # Shown targets are drawn at random (BERT shows 10 %): four standard deviations of the binomial distribution.
    if leaks > every * shown + 4 * math.sqrt(every * shown * (1 - shown)):
        raise CheckFailed(
            f"{leaks} of {every} targets can be read off: the token that is the answer changes what is said of them, "
            f"and {shown:.0%} are shown on purpose"
        )


def _distinct_token_batches(subject: Subject, objective: Objective) -> Iterator[dict[str, Tensor]]:
    """Batches of one prepared sample in which no ordinary token occurs twice, so that replacing an answer replaces no other."""
    chance = np.random.default_rng(0)
    for _ in range(MAX_SAMPLES):
        tokens = chance.permutation(FIRST_SPECIAL)[: learning.sample_length(subject) + 1]
        batch = stand_in.batch(objective, tokens[None], chance)
        if not {"ids", "labels"} <= batch.keys():
            raise NotApplicable("its samples have no ids with labels, which would tell which tokens are the answers")
        yield subject.read_by_parts(batch["ids"].shape[1], 1) | batch


@torch.no_grad()
def _depends_on_answer(
    model: Model, batch: dict[str, Tensor], target: int, answer: int, inputs: tuple[str, ...]
) -> bool:
    """True if the hidden state at `target` changes when the answer is replaced wherever it stands in these inputs."""
    texts: dict[str, Tensor] = {name: batch[name] for name in inputs if name in batch}
    changed = {name: text.where(text != answer, (answer + 1) % FIRST_SPECIAL) for name, text in texts.items()}
    if all(torch.equal(changed[name], text) for name, text in texts.items()):
        return False
    other: dict[str, Tensor] = {**batch, **changed}
    one, another = model(batch).hidden[0, target], model(other).hidden[0, target]
    return bool((one - another).abs().max() > 1e-5 * (1 + one.abs().max()))
