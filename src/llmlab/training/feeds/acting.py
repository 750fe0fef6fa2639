"""Answers of a model to prompts, and their scores: what a rollout and an evaluation have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

import numpy as np
import torch

from llmlab import attributes
from llmlab.data import collate
from llmlab.data.template import Template
from llmlab.decoding.answers import Answer, answers
from llmlab.decoding.generate import fits_padding
from llmlab.decoding.sampling import Sampling
from llmlab.errors import UserError
from llmlab.runs.answers import Judged
from llmlab.slots import Rollout, Scored

if TYPE_CHECKING:
    from llmlab.data.tokenizer import Tokenizer
    from llmlab.model.model import Model
    from llmlab.slots import Acts, Reward, Vocabulary
    from llmlab.training.feeds import Batch

GREEDY = Sampling(temperature=0)  # validations that draw would differ from one to the next
NONE: Mapping[str, Any] = {}  # no models
CHECKED = 10_000  # records that are looked at before a run, all others as they are met


class Prompt(TypedDict):
    """A sample of records of the kind "prompts". rest: the record's other fields."""

    prompt: np.ndarray
    rest: dict[str, Any]


class Prompts(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, i: int, /) -> Prompt: ...


def check(prompts: Prompts, reward: Reward | None, model: Model) -> None:
    """UserError for prompts that lack what the reward needs, or that the model can't answer together."""
    for i in range(0 if reward is None else min(len(prompts), CHECKED)):
        _needed(reward, prompts[i]["rest"])
    spec = model.spec
    if not fits_padding(model, spec.sizes.max_positions):
        raise UserError(
            f"model={spec.family} has a mask or window that goes by absolute places, so prompts of different lengths "
            "can't be answered together; choose another window"
        )


def _needed(reward: Reward | None, rest: Mapping[str, Any]) -> None:
    if missing := [name for name in attributes.get(reward, "reward", "needs") if name not in rest]:
        has = ", ".join(["prompt", *rest])
        another = "; reward.field=NAME names another" if hasattr(reward, "field") else ""
        name = type(reward).__name__
        raise UserError(f"reward {name} needs {missing[0]!r} in each record, but one has {has}{another}")


@dataclass(frozen=True)
class Actor:
    """Writes answers to prompts and judges them. at_once: prompts that are answered together. reward: None of an objective that
    learns from none: its answers are worth nothing."""

    how: Rollout
    reward: Reward | None
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    at_once: int

    @cached_property
    def stops(self) -> tuple[int, ...]:
        """The ids at which an answer ends: those of the chat template that prompts are written by, where there is one."""
        if Template.among(self.tokenizer.beside):
            return Template.of(self.tokenizer, "the tokenizer").ends(self.tokenizer)
        return self.tokenizer.stops

    def answers(
        self, model: Model, prompts: Sequence[Prompt], seeds: Sequence[int], sampling: Sampling
    ) -> list[Answer]:
        """One to each prompt, drawn by its seed, up to the end token."""
        return answers(
            model,
            [p["prompt"].tolist() for p in prompts],
            max_new=self.how.max_new,
            sampling=sampling,
            seeds=seeds,
            stop=self.stops,
            vocabulary=self.vocabulary.size,
            at_once=self.at_once,
        )

    def scores(
        self, prompts: Sequence[Prompt], written: Sequence[Answer], judges: Mapping[str, Model] = NONE
    ) -> Scored:
        """The reward of each answer. UserError for what is no number. judges: the models that the reward works with."""
        if self.reward is None:
            return Scored([0.0] * len(written), {})
        # Special tokens are left out by the decoder: a rule that compares texts would see the end token in each.
        texts = [self.tokenizer.decode(answer.ids) for answer in written]
        for p in prompts:
            _needed(self.reward, p["rest"])
        records = [{**p["rest"], "prompt": self.tokenizer.decode(p["prompt"].tolist())} for p in prompts]
        given = self._scored(records, texts, prompts, written, judges)
        scores = Scored(map(float, given), given.shown if isinstance(given, Scored) else {})
        # NaN or infinity would be in the advantages of a whole group, and from there in all weights.
        if len(scores) != len(texts) or not all(map(np.isfinite, scores)):
            name = type(self.reward).__name__
            raise UserError(
                f"reward {name} must give one finite number an answer; for {len(texts)} it gave {scores[:8]}"
            )
        return scores

    def _scored(
        self,
        records: Sequence[Mapping[str, Any]],
        texts: Sequence[str],
        prompts: Sequence[Prompt],
        written: Sequence[Answer],
        judges: Mapping[str, Model],
    ) -> Sequence[float]:
        if not judges:
            return self.reward.score(records, texts)
        score: Callable[..., Sequence[float]] = self.reward.score
        device, found = next(next(iter(judges.values())).parameters()).device, list[float]()
        shown: dict[str, list[float]] = {}
        for first in range(0, len(texts), self.at_once):
            some = slice(first, first + self.at_once)
            whole = [
                {"ids": np.concatenate([p["prompt"], np.asarray(a.ids, np.int64)])}
                for p, a in zip(prompts[some], written[some], strict=True)
            ]
            longest = max(
                len(each["ids"]) for each in whole
            )  # else a multiple of 8, which may be more than the model reads
            batch = {name: t.to(device) for name, t in collate.batch(whole, "pad", most=longest).items()}
            with torch.no_grad():
                scores = score(records[some], texts[some], batch=batch, **judges)
            found += scores
            for name, values in (scores.shown if isinstance(scores, Scored) else {}).items():
                shown.setdefault(name, []).extend(values)
        return Scored(found, shown)

    def judgements(
        self, model: Model, prompts: Prompts, objective: Acts, judges: Mapping[str, Model] = NONE
    ) -> Iterator[Batch]:
        """`judged` of all prompts, some at once."""
        for first in range(0, len(prompts), self.at_once):
            some = [prompts[i] for i in range(first, min(first + self.at_once, len(prompts)))]
            yield self.judged(model, some, objective, judges)

    def judged(
        self,
        model: Model,
        prompts: Sequence[Prompt],
        objective: Acts,
        judges: Mapping[str, Model] = NONE,
        shown: list[Judged] | None = None,
    ) -> Batch:
        """Rewards and lengths of greedy answers (B,), as an objective's loss reads them in a validation; of one that learns
        from no reward the answers themselves, as it prepares them. shown: takes the answers as texts, with their rewards."""
        written = self.answers(model, prompts, [0] * len(prompts), GREEDY) if prompts else []
        if self.reward is None and prompts:
            samples = [
                {"prompt": p["prompt"], "answer": np.array(a.ids), "log_probabilities": np.array(a.log_probabilities)}
                for p, a in zip(prompts, written, strict=True)
            ]
            return dict(collate.batch([objective.prepare(s, np.random.default_rng(0)) for s in samples], "pad"))
        scores = self.scores(prompts, written, judges)
        if shown is not None:
            shown += [self._told(*of) for of in zip(prompts, written, scores, strict=True)]
        return {
            "reward": torch.tensor(scores, dtype=torch.float32),
            "answer_length": torch.tensor([len(a.ids) for a in written], dtype=torch.int64),
            "shown": {name: torch.tensor(of, dtype=torch.float32) for name, of in scores.shown.items()},
        }

    def _told(self, prompt: Prompt, answer: Answer, score: float) -> Judged:
        # With its special tokens, as they tell where a chat template's messages begin and end.
        asked = self.tokenizer.decode(prompt["prompt"].tolist(), special=True)
        return Judged(asked, self.tokenizer.decode(answer.ids), score, len(answer.ids), answer.ids[-1] in self.stops)
