"""Methods that learn from all answers to a prompt together, and from a teacher: their losses against formulas, by loops."""

import itertools
import math

import numpy as np
import pytest
import torch
from parts import part

from llmlab.data import collate
from llmlab.slots import Output, Vocabulary

SIZE = 12


def made(name, **options):
    return part("alignment", name, **{"max_new": 6, **options})(Vocabulary(SIZE, {"eos": 0}), 16)


class Scores:
    """A model that scores the next token by the last one, in float64."""

    def __init__(self, seed):
        chance = torch.Generator().manual_seed(seed)
        self.table = torch.randn(SIZE, SIZE + 2, dtype=torch.float64, generator=chance).requires_grad_()

    def __call__(self, read, *, heads):
        scores = self.table[read["ids"]]
        return Output(scores, {"tokens": scores[heads["tokens"]]}, None)

    def tokens(self, prompt, answer, temperature=1.0):
        """Log-probabilities of an answer's tokens."""
        before = [int(prompt[-1]), *answer.tolist()[:-1]]
        log_p = [(self.table[a, :SIZE] / temperature).log_softmax(0) for a in before]
        return [p[b] for p, b in zip(log_p, answer.tolist(), strict=True)]


def prompts(samples, rewards, seed=0, truncated=None):
    """One with each row of rewards, to which there are answers of several lengths."""
    chance = np.random.default_rng(seed)
    found = []
    for i, row in enumerate(rewards):
        answers = [chance.integers(SIZE, size=1 + (i + j) % 3) for j in range(samples)]
        found.append(
            {
                "prompt": chance.integers(1, SIZE, 1 + i % 3),
                "answers": answers,
                "reward": list(row),
                "truncated": [0.0] * samples if truncated is None else truncated[i],
                "log_probabilities": [-np.ones(len(a)) for a in answers],
            }
        )
    return found


def batch_of(objective, samples):
    prepared = [objective.prepare(sample, None) for sample in samples]
    batch = collate.batch(prepared, "pad")
    counts = {
        term: torch.tensor(sum(objective.targets(p)[term] for p in prepared)) for term in objective.targets(prepared[0])
    }
    return batch, counts


def same(found, want, model):
    torch.testing.assert_close(found.double(), want, rtol=1e-5, atol=1e-6)
    (ours,), (by_hand,) = (torch.autograd.grad(x, model.table) for x in (found, want))
    torch.testing.assert_close(ours, by_hand, rtol=1e-4, atol=1e-6)
    assert by_hand.abs().max() > 0.01


@pytest.mark.parametrize("labels", ["ranked", "bradley_terry"])
@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "hinge"])
@pytest.mark.parametrize("samples", [2, 3])
def test_online_dpo_is_dpo_of_the_pairs_that_the_reward_makes(samples, loss, labels):
    objective = made("online_dpo", samples=samples, loss=loss, labels=labels, beta=0.4, no_end=0.25)
    rewards = [[0.0, 1.0, 0.5], [0.7, 0.7, 0.7], [2.0, -1.0, 2.0]]
    truncated = [[0.0, 0.0, 1.0], [0.0] * 3, [0.0] * 3]
    asked = prompts(samples, [r[:samples] for r in rewards], truncated=[t[:samples] for t in truncated])
    asked.append({**asked[0], "answers": [asked[0]["answers"][0]] * samples})  # the same answer each time
    model, reference = Scores(0), Scores(1)
    batch, counts = batch_of(objective, asked)
    found = objective.loss(model, batch, reference=reference)
    of_pair = {
        "sigmoid": lambda d: -torch.nn.functional.logsigmoid(0.4 * d),
        "ipo": lambda d: (d - 1 / 0.8) ** 2,
        "hinge": lambda d: torch.relu(1 - 0.4 * d),
    }[loss]
    total = []
    for s in asked:
        worth = [r - 0.25 * t for r, t in zip(s["reward"], s["truncated"], strict=True)]
        gains = [
            sum(model.tokens(s["prompt"], a)) - sum(reference.tokens(s["prompt"], a)).detach() for a in s["answers"]
        ]
        pairs = []
        for i, j in itertools.permutations(range(samples), 2):
            if np.array_equal(s["answers"][i], s["answers"][j]):
                continue
            if labels == "ranked" and worth[i] > worth[j]:
                pairs.append((1.0, of_pair(gains[i] - gains[j])))
            elif labels == "bradley_terry":
                pairs.append((1 / (1 + math.exp(worth[j] - worth[i])), of_pair(gains[i] - gains[j])))
        if pairs:
            total.append(sum(w * x for w, x in pairs) / sum(w for w, _ in pairs))
    assert int(counts["preference"]) == len(total) == int(found.counts["preference"])
    assert len(total) == (2 if labels == "ranked" else 3)
    same(found.mean(counts), sum(total) / len(total), model)
    shown = {name: float(value / n) for name, (value, n) in found.logs.items()}
    assert shown["flat_groups"] == pytest.approx(1 - len(total) / 4)
    assert shown["reward_std"] == pytest.approx(
        np.mean([np.std(np.array(s["reward"]) - 0.25 * np.array(s["truncated"])) for s in asked]), abs=1e-6
    )


def test_online_dpo_begins_at_ln_2_and_equals_dpo_of_the_same_pair():
    objective, model = made("online_dpo"), Scores(0)
    asked = prompts(2, [[0.0, 1.0], [3.0, 2.0]])
    batch, _ = batch_of(objective, asked)
    loss = objective.loss(model, batch, reference=model)
    assert loss.mean().item() == pytest.approx(math.log(2)) and float(loss.logs["kl"][0]) == 0
    dpo = part("alignment", "dpo")(Vocabulary(SIZE, {"eos": 0}), 16)
    ranked = [{**s, "answers": [s["answers"][i] for i in np.argsort(s["reward"])[::-1]]} for s in asked]
    both, _ = batch_of(dpo, ranked)
    theirs = dpo.loss(model, both, reference=Scores(1)).mean()
    same(objective.loss(model, batch, reference=Scores(1)).mean(), theirs.double(), model)


@pytest.mark.parametrize(
    ("options", "winners"),
    [
        ({}, [1, 0, 2]),
        ({"ended": False}, [2, 0, 2]),
        ({"least": 0.6}, [1, None, None]),
        ({"temperature": 0.7}, [1, 0, 2]),
    ],
)
def test_rejection_is_the_likelihood_of_the_best_answer(options, winners):
    objective, model = made("rejection", samples=3, **options), Scores(0)
    asked = prompts(3, [[0.0, 0.9, 1.0], [0.5, 0.5, 0.5], [-1.0, -2.0, -0.5]], truncated=[[0, 0, 1], [0] * 3, [0] * 3])
    batch, counts = batch_of(objective, asked)
    found = objective.loss(model, batch)
    kept = [(s, s["answers"][w]) for s, w in zip(asked, winners, strict=True) if w is not None]
    each = [model.tokens(s["prompt"], a, options.get("temperature", 1.0)) for s, a in kept]
    want = -sum(sum(row) for row in each) / sum(len(row) for row in each)
    assert int(counts["policy"]) == sum(len(row) for row in each) == int(found.counts["policy"])
    same(found.mean(counts), want, model)
    assert float(found.logs["kept"][0]) == len(kept)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_distillation_is_the_divergence_at_ones_own_answers(beta):
    objective, model, teacher = made("distill", divergence=beta, softening=1.5), Scores(0), Scores(1)
    chance = np.random.default_rng(0)
    asked = [
        {
            "prompt": chance.integers(1, SIZE, 1 + i),
            "answer": chance.integers(SIZE, size=n),
            "log_probabilities": -np.ones(n),
        }
        for i, n in enumerate((3, 1, 2))
    ]
    batch, counts = batch_of(objective, asked)
    total = []
    for s in asked:
        for last in [int(s["prompt"][-1]), *s["answer"].tolist()[:-1]]:
            p, q = ((of.table[last, :SIZE] / 1.5).softmax(0) for of in (teacher, model))
            m = beta * p.detach() + (1 - beta) * q
            kl = lambda a, b: (a * (a.log() - b.log())).sum()  # noqa: E731
            p = p.detach()
            total.append({0.0: kl(p, q), 1.0: kl(q, p)}.get(beta, beta * kl(p, m) + (1 - beta) * kl(q, m)))
    assert int(counts["divergence"]) == 6
    same(objective.loss(model, batch, teacher=teacher).mean(counts), sum(total) / 6, model)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("online_dpo", {"samples": 1}, "alignment.samples must be at least 2, which are compared"),
        ("online_dpo", {"beta": 0.0}, "alignment.beta must be more than 0"),
        ("rejection", {"samples": 1}, "alignment.samples must be at least 2, of which the best"),
        ("distill", {"divergence": 1.5}, r"alignment.divergence must be in \[0, 1\]"),
    ],
)
def test_options_that_cannot_be(name, options, said):
    with pytest.raises(ValueError, match=said):
        made(name, **options)
