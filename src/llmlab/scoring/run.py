"""A run by a reward: answers to prompts, what they are worth, and how far they are from those of a reference.

P prompts, M answers to each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from llmlab import policy
from llmlab.data import collate
from llmlab.decoding.answers import Answer
from llmlab.decoding.sampling import Sampling
from llmlab.errors import UserError
from llmlab.intervals import Interval
from llmlab.runs import scores as files
from llmlab.runs.scores import Answered, Measured, Score
from llmlab.scoring import measures
from llmlab.scoring.request import Asked, Judge, Request, judge, same_prompts
from llmlab.seeds import key
from llmlab.slots import Rollout, Vocabulary
from llmlab.training.feeds import acting
from llmlab.training.feeds.acting import Actor, Prompt

if TYPE_CHECKING:
    from llmlab.data.tokenizer import Tokenizer

# Called with what is done, how much of it and of how much, as llmlab.data.progress has it.
Bar = Callable[[str, int | None, int | None], None]


class Writer:
    """A run with its answers to the prompts, M to each, those to one prompt behind each other."""

    def __init__(
        self, asked: Asked, prompts: list[Prompt], tokenizer: Tokenizer, request: Request, max_new: int, role: str
    ):
        self.asked, self.request, self.role = asked, request, role
        self.tokenizer, self.vocabulary = tokenizer, tokenizer.vocab_size
        self.prompts = [p for p in prompts for _ in range(request.samples)]
        self.max_new, self.written = max_new, list[Answer]()
        self.cut = list[str]()

    def actor(self, judge: Judge) -> Actor:
        how = Rollout(self.request.samples, self.max_new)
        at_once = self.request.batch_size
        return Actor(how, judge.reward, self.tokenizer, Vocabulary(self.vocabulary, {}), at_once)

    def write(self, judge: Judge, bar: Bar) -> None:
        actor, n, at_once = self.actor(judge), len(self.prompts), self.request.batch_size
        sampling = Sampling(temperature=self.request.temperature)
        # By the prompt and the answer's place, so that neither batch_size nor the number of prompts changes what is drawn; by
        # the role, as answers of run and reference of the same numbers would tie more often than independent ones.
        seeds = [key(self.request.seed, self.role, *divmod(i, self.request.samples)) for i in range(n)]
        for first in range(0, n, at_once):
            some = slice(first, first + at_once)
            self.written += actor.answers(self.asked.model, self.prompts[some], seeds[some], sampling)
            bar("answering", len(self.written), n)

    def rewards(self, judge: Judge) -> np.ndarray:
        """(P, M)."""
        found = self.actor(judge).scores(self.prompts, self.written, judge.models)
        return np.array(found, np.float64).reshape(-1, self.request.samples)

    def log_p(self, answers: Sequence[Answer], some: slice) -> policy.Recomputed:
        """Of the tokens of `answers` after this run's own prompts."""
        made = [
            policy.prepared({"prompt": p["prompt"], "answer": np.asarray(a.ids)}, self.max_new)
            for p, a in zip(self.prompts[some], answers[some], strict=True)
        ]
        batch = collate.batch(made, "pad", most=max(len(each["ids"]) for each in made))
        return policy.log_probabilities(
            self.asked.model,
            batch,
            temperature=self.request.temperature,
            vocabulary=self.vocabulary,
            writer=False,
        )


def divergences(writer: Writer, reference: Writer, bar: Bar) -> np.ndarray:
    """(P, M): KL(run || reference) over the tokens of each answer, exact for the contexts that were drawn."""
    found, n, at_once = list[float](), len(writer.written), writer.request.batch_size
    for first in range(0, n, at_once):
        some = slice(first, first + at_once)
        ours, theirs = (w.log_p(writer.written, some) for w in (writer, reference))
        each = policy.exact_kl(ours.log_p, theirs.log_p).double()
        rows = min(n, first + at_once) - first
        found += each.new_zeros(rows).index_add(0, ours.rows, each).tolist()
        bar("comparing", len(found), n)
    return np.array(found).reshape(-1, writer.request.samples)


def score(
    run: str, words: Sequence[str], request: Request, *, reference: str | None, chooser: str | None, bar: Bar
) -> tuple[Score, list[Answered]]:
    """words: the reward, as it is typed. reference: a run; None: neither KL nor win rate. chooser: a run of a reward model, by
    which the best of n is chosen; None: the reward itself. UserError for runs that can't be asked or compared."""
    asked = Asked(run)
    own = asked if request.data is None and asked.reads_prompts else None
    max_new = request.max_new or asked.max_new
    true = judge(words, asked.tokenizer)
    by = true if chooser is None else judge(["reward=model", f"models.reward={chooser}"], asked.tokenizer)
    writer = _writer(asked, request, own, max_new, (true, by), "run")
    other = None
    if reference is not None:
        # The same run is not drawn from again: its answers are the same.
        other = (
            writer if _same(run, reference) else _writer(Asked(reference), request, own, max_new, (true,), "reference")
        )
        same_prompts(writer.prompts, other.prompts, Path(reference))  # type: ignore[arg-type]  # lists of them
    with torch.inference_mode():
        for one in dict.fromkeys(w for w in (writer, other) if w is not None):
            one.write(true, bar)
        rewards = writer.rewards(true)
        chosen = rewards if by is true else writer.rewards(by)
        wins = None if other is None else measures.wins(rewards, rewards if other is writer else other.rewards(true))
        kl, no_kl = None, None
        if other is not None:
            no_kl = _without_kl(writer, other)
            kl = divergences(writer, other, bar) if no_kl is None else None
    binary = bool(np.isin(rewards, (0, 1)).all())
    m = request.samples
    lengths = [len(a.ids) for a in writer.written]
    ends = [a.ids[-1] in writer.actor(true).stops for a in writer.written]
    found: Score = {
        "run": str(run),
        "reward_by": true.typed,
        "data": request.data or "the run's held-out prompts",
        "reference": reference,
        "prompts": len(rewards),
        "answers": rewards.size,
        "samples": m,
        "max_new": max_new,
        "temperature": request.temperature,
        "seed": request.seed,
        "reward": _measured(measures.interval(rewards.mean(1), share=binary, most=m)),
        "answer_length": float(np.mean(lengths)),
        "ended": float(np.mean(ends)),
    }
    if cut := [
        *writer.cut,
        *(f"{line}, by the reference" for line in (other.cut if other else []) if other is not writer),
    ]:
        found["cut"] = cut
    if kl is not None:
        found["kl"] = _measured(measures.interval(kl.mean(1), share=False))
    if no_kl is not None:
        found["no_kl"] = no_kl
    if wins is not None:
        found["win_rate"] = _measured(measures.interval(wins.mean(1), share=True, most=m))
    weights = None
    if (n := request.best_of) is not None:
        weights = np.array([measures.chances(row, n) for row in chosen])
        most = m // n
        best = measures.interval((weights * rewards).sum(1), share=binary, most=most)
        found["best_of"] = {
            "n": n,
            "chosen_by": by.typed,
            "reward": _measured(best),
            "kl_at_most": measures.best_of_kl(n),
        }
        if wins is not None:
            found["best_of"]["win_rate"] = _measured(measures.interval((weights * wins).sum(1), share=True, most=most))
    extra = {"reward": rewards, "kl": kl, "win": wins, "chosen": weights, "score": None if by is true else chosen}
    columns = {name: of.ravel().tolist() for name, of in extra.items() if of is not None}
    rows: list[Answered] = [
        {
            "prompt": writer.tokenizer.decode(p["prompt"].tolist(), special=True),
            "answer": writer.tokenizer.decode(a.ids),
            "ids": a.ids,
            "ended": ended,
            **{name: of[i] for name, of in columns.items()},  # type: ignore[typeddict-item]  # the names above
        }
        for i, (p, a, ended) in enumerate(zip(writer.prompts, writer.written, ends, strict=True))
    ]
    return found, rows


def keep(run: str, found: Score, answers: Sequence[Answered]) -> Path:
    """The file of the answers, beside which the numbers are."""
    from llmlab.runs import folder

    # Its options and models may be typed before it.
    reward = [w for w in found["reward_by"].split() if w.startswith("reward=")][-1].partition("=")[2].strip("'\"")
    of = Path(found["data"]).stem.replace(" ", "_") if found["data"] != "the run's held-out prompts" else "own"
    return files.write(folder.home(run), f"{reward}-{of}", found, answers)


def _writer(
    asked: Asked, request: Request, own: Asked | None, max_new: int, judges: Sequence[Judge], role: str
) -> Writer:
    prompts, corpus, cut = asked.prompts(request, own, max_new)
    if not len(prompts):
        raise UserError(f"data={request.data}: it has no prompts")
    for one in judges:
        acting.check(prompts, one.reward, asked.model)
    n = min(len(prompts), request.prompts or len(prompts))
    writer = Writer(asked, [prompts[i] for i in range(n)], corpus.tokenizer, request, max_new, role)
    writer.cut = cut
    return writer


def _same(run: str, reference: str) -> bool:
    return Path(run).resolve() == Path(reference).resolve()


def _without_kl(writer: Writer, reference: Writer) -> str | None:
    """Why the KL can't be said; None where it can."""
    if not writer.request.temperature:
        return "at temperature=0 an answer has no distribution; leave it at 1"
    if writer.asked.vocabulary != reference.asked.vocabulary:
        return "the run and the reference have different tokens"
    return None


def _measured(of: Interval) -> Measured:
    return {"mean": of.mean, "low": of.low, "high": of.high}
