"""Whole answers to prompts, with the log-probability of each of their tokens: what a rollout is made of."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from llmlab.decoding.generate import generate_all
from llmlab.decoding.sampling import Sampling
from llmlab.model.model import Model


@dataclass(frozen=True)
class Answer:
    """The ids after a prompt, the end token included where there is one, and the log-probability of each as it was drawn."""

    ids: list[int]
    log_probabilities: list[float]


def answers(
    model: Model,
    prompts: Sequence[list[int]],
    *,
    max_new: int,
    sampling: Sampling,
    seeds: Sequence[int],
    stop: int | Collection[int] | None = None,
    start: int | None = None,
    vocabulary: int | None = None,
    at_once: int | None = None,
) -> list[Answer]:
    """One answer to each prompt, of at most `max_new` tokens; the rest as `generate_all` has it.

    at_once: prompts that are gone on with together, over one cache; None: all.
    """
    found: list[Answer] = []
    # range() refuses a step of 0, which no prompts at all would give.
    at_once = at_once or max(1, len(prompts))
    for first in range(0, len(prompts), at_once):
        some = list(prompts[first : first + at_once])
        # A prompt's ids do not depend on its company (generate_all), so that pieces give what all at once would.
        trace: list[list[tuple[int, float]]] = [[] for _ in some]
        for _ in generate_all(
            model,
            some,
            max_new=max_new,
            sampling=sampling,
            seeds=seeds[first : first + at_once],
            stop=stop,
            start=start,
            vocabulary=vocabulary,
            trace=trace,
        ):
            # `generate_all` fills the trace; the loop only makes the generator run.
            pass
        found += [Answer([i for i, _ in row], [p for _, p in row]) for row in trace]
    return found
