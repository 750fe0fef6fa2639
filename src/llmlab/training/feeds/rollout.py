"""A feed that rolls out: the model answers prompts, a reward scores the answers, and training goes over them for some steps.

Rollout r serves the optimizer steps from r * rollout.steps on. Its prompts, the draws of each answer, and the order of its
answers in each epoch are functions of (seed, r, row), so they depend on neither ranks nor micro-batches; every rank holds
the whole rollout, so that any can take any answer. A sample is an answer or, of an objective that learns from them
`together`, all answers to a prompt. N answers, A tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from llmlab import attributes, policy
from llmlab.data import collate
from llmlab.data.loader import total
from llmlab.data.order import indices
from llmlab.decoding.sampling import Sampling
from llmlab.errors import UserError
from llmlab.runs.answers import SHOWN, Judged
from llmlab.seeds import key
from llmlab.slots import Acts, Answers
from llmlab.training.cut import Cut
from llmlab.training.feeds import Batch, Feed, Learner
from llmlab.training.feeds.acting import Actor, Prompt, Prompts

if TYPE_CHECKING:
    from llmlab.model.model import Model


SHOWS = "shown."  # before the names of what the reward shows, which the objective is not given


@dataclass
class Held:
    """A rollout. rows: index (N,) of the prompt, ids and log_probabilities (N, A), lengths, reward and truncated (N,), what the
    reward shows (N,), and what the objective made of them, (N, A) or (N,)."""

    number: int
    rows: dict[str, Tensor]


class Sized:
    """An iterable of known length."""

    def __init__(self, n: int, make: Callable[[], Iterator[Batch]]):
        self.n, self.make = n, make

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[Batch]:
        return self.make()


class Rollouts(Feed):
    """Micro-batches of the answers that the module's model gives.

    limit: held-out prompts of a validation, the first; None: all. steps: optimizer steps of the run. seq_len:
    tokens of a prompt and its answer at most.
    """

    def __init__(
        self,
        prompts: Prompts,
        held_out: Prompts,
        objective: Acts,
        actor: Actor,
        *,
        seed: int,
        cut: Cut,
        steps: int,
        seq_len: int,
        limit: int | None = None,
    ):
        self.prompts, self.held_out, self.objective, self.actor = prompts, held_out, objective, actor
        self.seed, self.cut, self.steps, self.seq_len, self.limit = seed, cut, steps, seq_len, limit
        self.how = objective.rollout
        self.together = attributes.get(objective, "objective", "together")
        self.size = cut.batch_size * self.how.batches  # samples of a rollout
        self.answers = self.size * (self.how.samples if self.together else 1)
        self.held: Held | None = None
        self.judged: list[Judged] = []
        self.module: Learner | None = None
        if self.answers % self.how.samples:
            raise UserError(
                f"alignment.samples={self.how.samples} must divide the {self.size} answers of a rollout: train.batch_size="
                f"{cut.batch_size} x alignment.batches={self.how.batches}"
            )

    def attach(self, module: Learner) -> None:
        self.module = module

    # ---------------------------------------------------------------- what training is fed

    def train(self, rank: int, world: int, start: int) -> Sized:
        return Sized(self.steps * self.cut.accumulate, lambda: self._train(rank, world, start))

    def _train(self, rank: int, world: int, start: int) -> Iterator[Batch]:
        micro, size = self.cut.micro, self.cut.batch_size
        for step in range(start, self.steps):
            number, within = divmod(step, self.how.steps)
            if self.held is None or self.held.number != number:
                # What a resumed run would generate here is of other weights than those that the rollout began with.
                assert not within, "the checkpoint in the middle of a rollout does not hold it"
                self.held = self._roll_out(number, rank, world)
            epoch, batch = divmod(within, self.how.batches)
            # One order for all ranks, from (seed, rollout, epoch) alone; PPO goes over its samples in shuffled minibatches
            # as well (Schulman et al. 2017, arXiv:1707.06347).
            order = np.random.default_rng(key(self.seed, "rollout order", number, epoch)).permutation(self.size)
            rows = order[batch * size : (batch + 1) * size]
            prepared = [self._prepared(row) for row in rows.tolist()]
            counts = total(self.objective.targets(sample) for sample in prepared)
            for j in range(self.cut.accumulate):
                first = (j * world + rank) * micro
                made: Batch = collate.batch(prepared[first : first + micro], "pad", most=self.seq_len)
                made["counts"] = {name: torch.tensor(n) for name, n in counts.items()}
                if shown := self._shown(order[batch * size :][first : first + micro]):
                    made["shown"] = shown
                if not within:
                    made["fresh"] = torch.tensor(True)
                yield made

    def _shown(self, samples: np.ndarray) -> dict[str, Tensor]:
        """What the reward shows of the answers of some samples."""
        assert self.held is not None
        n = self.how.samples if self.together else 1
        rows = torch.from_numpy(samples[:, None] * n + np.arange(n)).flatten()
        return {k.removeprefix(SHOWS): of[rows] for k, of in self.held.rows.items() if k.startswith(SHOWS)}

    def _prepared(self, i: int) -> dict[str, Any]:
        assert self.held is not None
        rows, number, n = self.held.rows, self.held.number, self.how.samples
        if not self.together:
            return self._prepare(self._answer(rows, i), number, i)
        each = [self._answer(rows, row) for row in range(i * n, (i + 1) * n)]
        names = {name: "answers" if name == "answer" else name for name in each[0] if name != "prompt"}
        return self._prepare(
            {"prompt": each[0]["prompt"], **{to: [a[name] for a in each] for name, to in names.items()}}, number, i
        )

    def _answer(self, rows: Mapping[str, Tensor], row: int) -> dict[str, Any]:
        n = int(rows["lengths"][row])
        values = {
            name: of[row]
            for name, of in rows.items()
            if name not in ("prompts", "lengths", "ids") and not name.startswith(SHOWS)
        }
        return {
            "prompt": self.prompts[int(rows["prompts"][row])]["prompt"],
            "answer": rows["ids"][row, :n].numpy(),
            **{name: value[:n].numpy() if value.dim() else float(value) for name, value in values.items()},
        }

    def _prepare(self, sample: dict[str, Any], number: int, drawn: int) -> dict[str, Any]:
        """The sample as the objective prepares it. drawn: its place in the rollout."""
        return self.objective.prepare(sample, np.random.default_rng(key(self.seed, "prepare", number, drawn)))

    # ---------------------------------------------------------------- acting

    def _roll_out(self, number: int, rank: int, world: int) -> Held:
        """Each rank generates and scores its share; then all have all."""
        groups = self.answers // self.how.samples
        at = indices(self.seed, number * groups + np.arange(groups), len(self.prompts)).repeat(self.how.samples)
        share = range(rank * self.answers // world, (rank + 1) * self.answers // world)
        mine = [self.prompts[at[row]] for row in share]
        seeds = [key(self.seed, "rollout", number, row) for row in share]
        with self._acting() as model:
            local = self._written(model, mine, seeds)
            local["prompts"] = torch.tensor(at[share.start : share.stop])
            if self.how.resample:
                self._resample(model, local, number, share)
            measured = self._measured(model, local, number, share)
        assert self.module is not None
        strategy, device = self.module.strategy, self.module.device
        # Over the device, as NCCL knows no CPU tensors.
        rows, extra = (
            {name: strategy.gather(t.to(device)).flatten(0, 1).cpu() for name, t in of.items()}
            for of in (local, measured)
        )
        longest = int(rows["lengths"].max())  # gathered at max_new, as all ranks' tensors must have one shape
        rows, extra = (
            {name: (t[:, :longest] if t.dim() > 1 else t).contiguous() for name, t in of.items()}
            for of in (rows, extra)
        )
        answers = Answers(
            rows["reward"].double().numpy(),
            rows["lengths"].numpy(),
            rows["truncated"].numpy() > 0,
            rows["log_probabilities"].double().numpy(),
            {name: t.double().numpy() for name, t in extra.items()},
            self.how.samples,
        )
        credit = {k: torch.from_numpy(np.array(v, np.float32)) for k, v in self.objective.credit(answers).items()}
        return Held(number, {**rows, **credit})

    def _written(self, model: Model, prompts: Sequence[Prompt], seeds: Sequence[int]) -> dict[str, Tensor]:
        """Answers and their rewards, all as wide as an answer may be: tensors that are gathered must have one shape on all
        ranks."""
        written = self.actor.answers(model, prompts, seeds, Sampling(temperature=self.how.temperature))
        width = self.how.max_new
        scores = self.actor.scores(prompts, written, self._judges)
        return {
            "ids": torch.tensor([[*a.ids, *[0] * (width - len(a.ids))] for a in written]),
            "log_probabilities": torch.tensor(
                [[*a.log_probabilities, *[0.0] * (width - len(a.ids))] for a in written], dtype=torch.float32
            ),
            "lengths": torch.tensor([len(a.ids) for a in written]),
            "reward": torch.tensor(scores, dtype=torch.float32),
            "truncated": torch.tensor([float(a.ids[-1] not in self.actor.stops) for a in written]),
            **{SHOWS + name: torch.tensor(of, dtype=torch.float32) for name, of in scores.shown.items()},
        }

    def _resample(self, model: Model, local: dict[str, Tensor], number: int, share: range) -> None:
        """Answers to other prompts in place of groups without spread, again and again (DAPO's dynamic sampling: Yu et al. 2025,
        arXiv:2503.14476, equation 11). `resampled` is how often a group was. Which prompts follows from (seed, number, time,
        group), so that all ranks take the same; each draws anew the rows of its share."""
        assert self.module is not None
        local["resampled"] = torch.zeros(len(share))
        for time in range(1, self.how.resample + 1):
            rewards = (
                self.module.strategy.gather(local["reward"].to(self.module.device)).flatten().cpu().double().numpy()
            )
            flat = np.flatnonzero(policy.without_spread(rewards.reshape(-1, self.how.samples)))
            other = {
                int(group): int(
                    np.random.default_rng(key(self.seed, "resample", number, time, int(group))).integers(
                        len(self.prompts)
                    )
                )
                for group in flat
            }
            mine = [i for i, row in enumerate(share) if row // self.how.samples in other]
            if mine:
                at = [other[share[i] // self.how.samples] for i in mine]
                seeds = [key(self.seed, "rollout", number, share[i], time) for i in mine]
                found = {**self._written(model, [self.prompts[i] for i in at], seeds), "prompts": torch.tensor(at)}
                for name, rows in found.items():
                    local[name][mine] = rows
                local["resampled"][mine] += 1
            if not other:
                break

    def _measured(self, model: Model, local: Mapping[str, Tensor], number: int, share: range) -> dict[str, Tensor]:
        """What the objective measures of this rank's answers: (its share, max_new) of tokens, or (its share,)."""
        measure = getattr(self.objective, "measure", None)
        if measure is None:
            return {}
        assert not self.together, "`measure` is of single answers"
        assert self.module is not None
        found: dict[str, list[Tensor]] = {}
        micro, n = self.cut.micro, len(share)
        for first in range(0, n, micro):
            some = range(first, min(first + micro, n))
            prepared = [self._prepare(self._answer(local, row), number, share[row]) for row in some]
            batch = {k: t.to(self.module.device) for k, t in collate.batch(prepared, "pad", most=self.seq_len).items()}
            with torch.no_grad():
                values: Mapping[str, Tensor] = measure(model, batch, **self.module.others)
            where = batch["labels"] != policy.IGNORED
            for name, value in values.items():
                if value.dim() > 1:
                    wide = value.new_zeros(len(some), self.how.max_new)
                    # Both masks flatten row by row, and have as many tokens in each row.
                    there = torch.arange(self.how.max_new, device=wide.device) < where.sum(1, keepdim=True)
                    value = wide.masked_scatter(there, value[where])
                found.setdefault(name, []).append(value.float().cpu())
        return {name: torch.cat(values) for name, values in found.items()}

    @property
    def _judges(self) -> Mapping[str, Model]:
        assert self.module is not None
        return self.module.judges

    @contextmanager
    def _acting(self) -> Iterator[Model]:
        """The model, under the precision of training: else the answers would be another model's."""
        assert self.module is not None and self.module.model is not None
        # Lightning enters it around training_step and validation_step only, and a feed runs while it fetches a batch.
        with self.module.trainer.precision_plugin.forward_context():
            yield self.module.model

    # ---------------------------------------------------------------- validation

    def validation(self, rank: int, world: int) -> Sized:
        n = len(self.held_out) if self.limit is None else min(self.limit, len(self.held_out))
        micro = self.cut.micro
        batches = -(-n // (micro * world))

        def make() -> Iterator[Batch]:
            self.judged = []
            for i in range(batches):
                first = (i * world + rank) * micro
                prompts = [self.held_out[i] for i in range(first, min(first + micro, n))]
                with self._acting() as model:
                    # On the first rank, which writes them.
                    wanted = not rank and len(self.judged) < SHOWN
                    shown = self.judged if wanted else None
                    judged = self.actor.judged(model, prompts, self.objective, self._judges, shown)
                yield judged

        return Sized(batches, make)

    # ---------------------------------------------------------------- state

    def state(self, step: int) -> dict[str, Any]:
        own: dict[str, Any] = getattr(self.objective, "state", dict)()
        state = {"objective": own} if own else {}
        if self.held is None or step // self.how.steps != self.held.number or not step % self.how.steps:
            return state
        return {**state, "number": self.held.number, "rows": self.held.rows}

    def load(self, state: dict[str, Any]) -> None:
        # As checkpoints of before called them.
        named = {"rewards": "reward", "advantages": "advantage"}
        rows = {named.get(k, k): t for k, t in state.get("rows", {}).items()}
        self.held = Held(state["number"], rows) if rows else None
        if "objective" in state:
            self.objective.load(state["objective"])  # type: ignore[attr-defined]  # as it gave it
