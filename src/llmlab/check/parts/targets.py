"""The check of an objective that its inputs don't contain the answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from llmlab import attributes, registry
from llmlab.check import learning
from llmlab.check.parts.fixtures import tested_part
from llmlab.check.subject import VOCABULARY, CheckFailed, NotApplicable, Subject
from llmlab.data import stand_in
from llmlab.model.model import Model
from llmlab.slots import Objective

FIRST_SPECIAL = VOCABULARY - 8  # special tokens are numbered from the end; only a list of over 8 reaches below this
MIN_TARGETS = 150  # at least so many are asked, in SAMPLES at most
MAX_SAMPLES = 60
TOKENS = ("vocabulary", "neighbours", "span")  # what heads give scores of where targets are tokens of the text


def hidden(subject: Subject) -> None:
    """What is said of a target does not change with the token that is its answer, except for the share that is `shown`, and no
    two targets are said with the help of each other's answers.

    Of targets that see others (a decoder's, a second stream's) the product of probabilities is one of the text only if there is
    an order in which each sees those before it. Where there is an encoder it is its source that shows an answer: what the
    decoder reads may tell none.
    """
    tested_part(subject, "objective", "alignment")
    objective = learning.build_objective(subject)
    heads = attributes.get(objective, "objective", "heads").values()
    if not any(registry.index()["head", head].attribute("scores") in TOKENS for head in heads):
        raise NotApplicable("its targets are no tokens")
    if attributes.get(objective, "objective", "halves"):
        _each_half(subject, objective)
        return
    shown, every, leaks, circular = attributes.get(objective, "objective", "shown"), 0, 0, 0
    for batch in _distinct_token_batches(subject, objective):
        labels = batch.pop("labels")[0].tolist()
        if not isinstance(labels, list):
            raise NotApplicable("its target is the class of a text, and no token of it")
        answers = {place: label for place, label in enumerate(labels) if 0 <= label < FIRST_SPECIAL}
        every += len(answers)
        depends = _dependence(subject.model, batch, answers)
        seen = depends.diagonal()
        leaks += int(seen.sum())
        if "source_ids" in batch and (told := _dependence(subject.model, batch, answers, ("ids",)).diagonal()).any():
            place = list(answers)[int(told.int().argmax())]
            raise CheckFailed(f"the decoder reads the answer of its token {place}, which changes what is said of it")
        circular += int(_on_a_circle(depends & ~seen & ~seen[:, None]).sum())
        if every >= MIN_TARGETS:
            break
    if not every:
        raise CheckFailed("it has no target in a sample")
    # Shown targets are drawn at random (BERT shows 10 %): four standard deviations of the binomial distribution.
    most = every * shown + 4 * math.sqrt(every * shown * (1 - shown))
    if leaks > most:
        raise CheckFailed(
            f"{leaks} of {every} targets can be read off: the token that is the answer changes what is said of them, "
            f"and {shown:.0%} are shown on purpose"
        )
    # A random token that is shown of one may be the answer of another: then they seem to depend on each other.
    if leaks + circular > most:
        raise CheckFailed(
            f"{circular} of {every} targets see answers of targets that see theirs, so that there is no order"
        )


@torch.no_grad()
def _each_half(subject: Subject, objective: Objective) -> None:
    """As `hidden`, of an objective that asks each half of a hidden state for a token: the first for the `labels`, which stand
    behind its own, the second for the `previous`. Neither may depend on its answer or on what is beyond that."""
    batch = next(iter(_distinct_token_batches(subject, objective)))
    known, ids = {key: batch.pop(key)[0].tolist() for key in ("labels", "previous")}, batch["ids"]
    width, places = subject.model(batch).hidden.shape[-1] // 2, torch.arange(ids.shape[1])
    for key, half, step in (("labels", slice(0, width), 1), ("previous", slice(width, None), -1)):
        asked = [(place, answer) for place, answer in enumerate(known[key]) if answer >= 0]
        if not asked:
            raise CheckFailed(f"it has no target of {key} in a sample")
        for place, answer in asked:
            if 0 <= place + step < ids.shape[1] and int(ids[0, place + step]) != answer:
                raise CheckFailed(f"{key}: {answer} is asked of token {place}, and does not stand beside it")
            beyond = places > place if step > 0 else places < place
            # The answer itself too, wherever it stands.
            other = ids.where(~(beyond | (ids[0] == answer)), (ids + 1) % FIRST_SPECIAL)
            one, two = (subject.model({**batch, "ids": x}).hidden[0, place, half] for x in (ids, other))
            if (one - two).abs().max() > 1e-5 * (1 + one.abs().max()):
                raise CheckFailed(
                    f"{key}: what is said of token {place} changes with its answer, or with what is beyond"
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
def _dependence(
    model: Model, batch: dict[str, Tensor], answers: Mapping[int, int], inputs: Sequence[str] = ("ids", "source_ids")
) -> Tensor:
    """(n, n) bool: True if the hidden state at a target (row) changes when the answer of another (column) is replaced wherever
    it stands in these inputs. answers: by place."""
    texts: dict[str, Tensor] = {name: batch[name] for name in inputs if name in batch}
    rows, found = list(answers), torch.zeros(len(answers), len(answers), dtype=torch.bool)
    before = model(batch).hidden[0, rows]
    for column, answer in enumerate(answers.values()):
        changed = {name: text.where(text != answer, (answer + 1) % FIRST_SPECIAL) for name, text in texts.items()}
        if not all(torch.equal(changed[name], text) for name, text in texts.items()):
            other: dict[str, Tensor] = {**batch, **changed}
            apart = (model(other).hidden[0, rows] - before).abs().amax(-1)
            found[:, column] = apart > 1e-5 * (1 + before.abs().amax(-1))
    return found


def _on_a_circle(depends: Tensor) -> Tensor:
    """(n,) bool: True for what depends on itself through others."""
    reached = depends
    for _ in range(len(depends).bit_length()):  # each time over paths of twice the length
        reached = reached | (reached.float() @ reached.float() > 0)
    return reached.diagonal()
