"""A rollout is a function of the seed, its number and the weights: neither ranks nor micro-batches change it."""

import threading
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llmlab import policy, registry
from llmlab.data.stand_in import StandIns
from llmlab.decoding.sampling import Sampling
from llmlab.errors import UserError
from llmlab.slots import Loss, Rollout, Scored, Vocabulary
from llmlab.testing import tiny
from llmlab.training import cost, losses
from llmlab.training.feeds.acting import Actor
from llmlab.training.feeds.rollout import Rollouts
from llmlab.training.recipe import Cut

VOCABULARY = Vocabulary(30, {"eos": 3})
PROMPTS = [{"prompt": np.arange(5, 6 + i), "rest": {"number": i}} for i in range(7)]


@pytest.fixture(scope="module")
def model():
    return tiny("model.tie_embeddings=false", "init.std=0.3")


class Objective:
    def __init__(self, **how):
        self.rollout = Rollout(**{"samples": 2, "max_new": 6, "temperature": 1.3, **how})

    def credit(self, answers):
        rewards_PS = answers.rewards.reshape(-1, answers.samples)
        return {"advantage": (rewards_PS - rewards_PS.mean(1, keepdims=True)).reshape(-1)}

    def prepare(self, sample, rng):
        return policy.prepared(sample, self.rollout.max_new)

    def targets(self, prepared):
        return {"policy": int(prepared["answer_length"])}


class Reward:
    needs = ()

    def score(self, records, answers):
        return [len(a) + r["number"] / 10 for r, a in zip(records, answers, strict=True)]


class Showing(Reward):
    def score(self, records, answers):
        numbers = [float(r["number"]) for r in records]
        return Scored(super().score(records, answers), {"number": numbers})


class Letters:
    """A tokenizer of a letter a token, without the special ones."""

    beside, stops = {}, (VOCABULARY.special["eos"],)

    def decode(self, ids, special=False):
        return "".join(chr(97 + i) for i in ids if i != VOCABULARY.special["eos"])


def feed(model, *, batch=8, micro=8, world=1, steps=12, rank_gathers=None, reward=None, limit=None, **how):
    objective = Objective(**how)
    made = Rollouts(
        PROMPTS,
        PROMPTS[:5],
        objective,
        Actor(objective.rollout, reward or Reward(), Letters(), VOCABULARY, micro),
        seed=3,
        cut=Cut.make(batch, micro, world),
        steps=steps,
        seq_len=16,
        limit=limit,
    )
    strategy = SimpleNamespace(gather=rank_gathers or (lambda t: t[None]))
    trainer = SimpleNamespace(precision_plugin=SimpleNamespace(forward_context=nullcontext))
    device = torch.device("cpu")
    made.attach(SimpleNamespace(model=model, strategy=strategy, device=device, trainer=trainer, others={}, judges={}))
    return made


def equal(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, dict):
            equal(value, other[name])
        else:
            torch.testing.assert_close(value, other[name], rtol=0, atol=1e-5)  # batches of other widths round otherwise


def joined(batches):
    """Rows of several micro-batches of a step, without what is of all."""
    width = max(b["ids"].shape[1] for b in batches)
    rows = []
    for b in batches:
        for i in range(len(b["ids"])):
            row = {k: v[i] for k, v in b.items() if isinstance(v, torch.Tensor) and v.dim()}
            row.pop("valid", None)
            rows.append(
                {
                    k: torch.nn.functional.pad(v, (0, width - len(v)), value=-100 if k == "labels" else 0)
                    if v.dim()
                    else v
                    for k, v in row.items()
                }
            )
    return rows


def test_micro_batches_hold_each_answer_once_an_epoch_in_another_order(model):
    made = feed(model, batches=2, epochs=3)
    batches = list(made.train(0, 1, 0))
    assert len(batches) == len(made.train(0, 1, 0)) == 12
    assert made.held.number == 1 and made.held.rows["ids"].shape[0] == 16

    def answers(step):
        return [(*row["ids"].tolist(), round(float(row["reward"]), 4)) for row in joined([batches[step]])]

    first = [sorted(answers(2 * e) + answers(2 * e + 1)) for e in range(6)]
    assert len({len(r) for r in first}) == 1
    assert answers(0) != answers(2) and batches[0].get("fresh") is not None and "fresh" not in batches[1]
    assert "fresh" in batches[6]
    total = [sum(float(r["reward"]) for s in (2 * e, 2 * e + 1) for r in joined([batches[s]])) for e in range(6)]
    assert total[0] == pytest.approx(total[1]) == pytest.approx(total[2])
    assert total[3] == pytest.approx(total[5])


def test_cut_in_any_way_a_step_is_the_same_answers(model):
    whole = list(feed(model, batches=2, epochs=2).train(0, 1, 0))
    small = list(feed(model, micro=2, batches=2, epochs=2).train(0, 1, 0))
    for step, batch in enumerate(whole):
        four = small[4 * step : 4 * step + 4]
        for one, other in zip(joined([batch]), joined([*four]), strict=True):
            n = min(len(one["ids"]), len(other["ids"]))
            equal(
                {k: v[:n] if v.dim() else v for k, v in one.items()},
                {k: v[:n] if v.dim() else v for k, v in other.items()},
            )
        assert all(b["counts"]["policy"] == batch["counts"]["policy"] == (batch["labels"] >= 0).sum() for b in four)


def test_each_rank_generates_its_share_of_one_rollout(model):
    whole = feed(model)._roll_out(0, 0, 1).rows
    for rank in range(2):
        made = feed(model, micro=4, world=2, rank_gathers=lambda t: torch.stack([t, t]))
        rows = made._roll_out(0, rank, 2).rows
        n = min(rows["ids"].shape[1], whole["ids"].shape[1])
        for name in ("ids", "log_probabilities", "lengths", "reward"):
            mine, its = rows[name][:4], whole[name][4 * rank : 4 * rank + 4]
            if mine.dim() == 2:
                mine, its = mine[:, :n], its[:, :n]
            torch.testing.assert_close(mine, its)


def test_an_answer_that_ends_as_the_chat_template_says_is_not_truncated(model):
    made = feed(model)
    # In place of the property: almost any id ends an answer.
    object.__setattr__(made.actor, "stops", tuple(range(3, 30)))
    rows = made._roll_out(0, 0, 1).rows
    last = rows["ids"].gather(1, rows["lengths"][:, None] - 1)[:, 0]
    assert ((last > 3) & (rows["lengths"] < 6)).any()
    assert torch.equal(rows["truncated"] > 0, last < 3)


def test_training_recomputes_the_log_probabilities_and_asserts_it(model):
    batch = next(iter(feed(model).train(0, 1, 0)))
    assert "valid" in batch and bool(batch["fresh"])
    found = policy.log_probabilities(model, batch, temperature=1.3, vocabulary=30)
    torch.testing.assert_close(found.now, found.then, rtol=0, atol=1e-5)
    assert torch.equal(found.rows.bincount(), batch["answer_length"])
    with pytest.raises(UserError, match="log-probabilities of answers differ by .*at most 0.0001 in float32"):
        policy.log_probabilities(model, batch, temperature=1.2, vocabulary=30)
    stale = {k: v for k, v in batch.items() if k != "fresh"}
    policy.log_probabilities(model, stale, temperature=1.2, vocabulary=30)  # the model has learnt since


def test_a_run_goes_on_from_the_middle_of_a_rollout(model):
    whole = list(feed(model, batches=2, epochs=2).train(0, 1, 0))
    made = feed(model, batches=2, epochs=2)
    batches = iter(made.train(0, 1, 0))
    for step in range(1, 8):
        next(batches)
        state = made.state(step)
        assert bool(state) == bool(step % 4)
        again = feed(model, batches=2, epochs=2)
        again.load(state)
        if state:
            again._roll_out = None  # not to be asked
        equal(next(iter(again.train(0, 1, step))), whole[step])


def test_what_the_reward_shows_is_logged_beside_what_the_objective_does(model):
    made = feed(model, reward=Showing(), micro=4, batches=2)
    for batch, _ in zip(made.train(0, 1, 0), range(8), strict=False):
        # The first token of prompt i is 5 and so is its length less one: which prompt a row is of can be seen.
        of = (batch["labels"] == policy.IGNORED).int().cumprod(1).sum(1)
        assert batch["shown"]["number"].tolist() == of.tolist()
    loss = losses.with_shown(Loss({"a": (of.sum(), of.sum())}), batch)
    assert loss.logs["number"] == (batch["shown"]["number"].sum(), 4)
    assert sorted(float(n) for b in made.validation(0, 1) for n in b["shown"]["number"]) == [0, 1, 2, 3, 4]


def test_validation_is_of_each_held_out_prompt_once_and_greedy(model):
    def judged(**how):
        world = how.get("world", 1)
        batches = [list(feed(model, **how).validation(rank, world)) for rank in range(world)]
        assert len({len(b) for b in batches}) == 1
        return sorted(round(float(r), 4) for rank in batches for b in rank for r in b["reward"])

    one = judged()
    assert len(one) == 5 and one == judged() == judged(micro=1) == judged(micro=4, world=2)
    assert len(judged(limit=3)) == 3


def test_what_it_refuses(model):
    with pytest.raises(
        UserError, match="alignment.samples=3 must divide the 8 answers of a rollout: train.batch_size=8"
    ):
        feed(model, samples=3)
    reward = SimpleNamespace(score=lambda records, answers: [float("nan")] * len(answers))
    with pytest.raises(UserError, match="one finite number an answer; for 8 it gave"):
        feed(model, reward=reward)._roll_out(0, 0, 1)


def test_the_cost_of_a_rollout_is_that_of_its_generation():
    """Operations counted as answers are written, from prompts of one token so that a cached step sees all that is there."""
    model = tiny("model.tie_embeddings=false", "kernel=eager")
    prompts = [{"prompt": np.array([5 + i]), "rest": {"number": i}} for i in range(8)]
    made = feed(model, epochs=4, max_new=12)
    endless = Vocabulary(30, {})  # all answers are as long as they may be
    made.actor = replace(made.actor, vocabulary=endless)
    with FlopCounterMode(display=False) as counter:
        made.actor.answers(model, prompts, list(range(8)), Sampling())
    objective = registry.load("alignment", "reinforce", {"epochs": 4, "max_new": 12})(VOCABULARY, 16)
    found = cost.estimate({"model": model}, objective, StandIns(objective, 8, 13, 30))
    trained, generated = sorted(found.passes, key=lambda p: not p.trained)
    assert (trained.times, generated.times) == (1, 1 / 4)
    assert 8 * 4 * generated.flops() == pytest.approx(counter.get_total_flops(), rel=1e-3)
    assert trained.flops() == pytest.approx(3 * 4 * generated.flops(), rel=0.02)


class Parity(Reward):
    """All answers to a prompt of even number are worth the same."""

    def score(self, records, answers):
        lengths = super().score(records, answers)
        return [x + 100 * i if r["number"] % 2 else 1.0 for i, (x, r) in enumerate(zip(lengths, records, strict=True))]


class Exchange:
    """What one rank gives all have, as in two processes."""

    def __init__(self, world):
        self.barrier, self.given = threading.Barrier(world), {}

    def of(self, rank):
        def gather(tensor):
            self.given[rank] = tensor
            self.barrier.wait()
            found = torch.stack([self.given[r] for r in sorted(self.given)])
            self.barrier.wait()
            return found

        return gather


def test_prompts_of_equal_rewards_are_drawn_again_and_nothing_else_is(model):
    once = feed(model, batch=12, micro=12, reward=Parity())._roll_out(0, 0, 1).rows
    again = feed(model, batch=12, micro=12, reward=Parity(), resample=1)._roll_out(0, 0, 1).rows
    many = feed(model, batch=12, micro=12, reward=Parity(), resample=20)._roll_out(0, 0, 1).rows
    even = once["prompts"] % 2 == 0
    assert 0 < even.sum() < len(even)
    for name in ("prompts", "reward", "lengths"):
        assert torch.equal(once[name][~even], again[name][~even]) and torch.equal(once[name][~even], many[name][~even])
    assert torch.equal(again["resampled"], even.float())
    assert (many["prompts"] % 2 == 1).all() and not torch.equal(again["prompts"], once["prompts"])
    assert (many["prompts"].reshape(-1, 2)[:, 0] == many["prompts"].reshape(-1, 2)[:, 1]).all()
    assert many["resampled"].max() > 1 and "resampled" not in once
    # Two ranks, of whose shares the border is in the middle of a group.
    both, exchange = {}, Exchange(2)

    def rank(i):
        made = feed(
            model, batch=12, micro=6, world=2, reward=Reward(), rank_gathers=exchange.of(i), resample=2, samples=4
        )
        made.actor = replace(made.actor, reward=Even())
        both[i] = made._roll_out(0, i, 2).rows

    threads = [threading.Thread(target=rank, args=(i,)) for i in range(2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    alone = feed(model, batch=12, micro=12, reward=Even(), resample=2, samples=4)._roll_out(0, 0, 1).rows
    assert alone["resampled"].max() > 0
    for name in ("prompts", "reward", "lengths", "resampled", "ids"):
        assert torch.equal(both[0][name], both[1][name]) and torch.equal(both[0][name], alone[name]), name


class Even(Reward):
    """Of an answer and its prompt alone, whichever rank has it."""

    def score(self, records, answers):
        return [float(len(a)) if r["number"] % 2 else 1.0 for a, r in zip(answers, records, strict=True)]


class Together(Objective):
    together = True

    def credit(self, answers):
        return {}

    def prepare(self, sample, rng):
        assert len(sample["answers"]) == len(sample["reward"]) == len(sample["log_probabilities"]) == 2
        return {
            "row_ids": [np.concatenate([sample["prompt"], a])[:-1] for a in sample["answers"]],
            "reward": np.array(sample["reward"], np.float32),
        }

    def targets(self, prepared):
        return {"policy": 1}


def test_answers_that_are_learnt_together_are_one_sample(model):
    made = feed(model, batch=4, micro=2)
    rows = made._roll_out(0, 0, 1).rows
    made.objective = Together()
    both = Rollouts(PROMPTS, PROMPTS, Together(), made.actor, seed=3, cut=Cut.make(2, 1, 1), steps=1, seq_len=16)
    both.attach(made.module)
    batches = list(both.train(0, 1, 0))
    assert len(batches) == 2 and both.answers == 4 and torch.equal(both.held.rows["reward"], rows["reward"])
    seen = sorted(tuple(b["reward"][0].tolist()) for b in batches)
    assert seen == sorted(map(tuple, rows["reward"].reshape(2, 2).tolist()))
    assert [int(b["counts"]["policy"]) for b in batches] == [2, 2] and batches[0]["row_ids"].shape[:2] == (1, 2)
