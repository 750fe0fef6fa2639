"""Methods that learn from preferences, against loops over answers, pairs and tokens."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from llmlab import registry
from llmlab.data import collate
from llmlab.slots import Aux, Output, Vocabulary

SIZE, ROWS = 17, 24  # ids in use, and the rows of the table, which is rounded up
VOCABULARY = Vocabulary(SIZE, {"eos": 1})
KIN = ("dpo", "ipo", "hinge", "robust", "cdpo", "apo_zero", "apo_down", "sppo", "simpo", "cpo", "orpo")
FREE = ("simpo", "cpo", "orpo")  # of a reference


class Bigram(nn.Module):
    """The scores of what comes next follow from the last token alone; `score` is the sum of a table over the text."""

    def __init__(self, seed):
        super().__init__()
        chance = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(ROWS, ROWS, generator=chance, dtype=torch.float64))
        self.values = nn.Parameter(torch.randn(ROWS, generator=chance, dtype=torch.float64))

    def forward(self, batch, heads=None, memory=None):
        ids, found = batch["ids"], {}
        for role, where in heads.items():
            if role == "tokens":
                found[role] = self.table[ids][where]
            else:
                found[role] = (self.values[ids] * batch["valid"]).sum(-1, keepdim=True)
        return Output(self.table[ids], found, Aux())

    def log_probability(self, prompt, answer, rows=SIZE):
        """(sum, tokens) of an answer, token by token."""
        total, last = 0.0, prompt[-1]
        for token in answer:
            total = total + self.table[last, :rows].log_softmax(-1)[token]
            last = token
        return total, len(answer)


@pytest.fixture(scope="module")
def models():
    return Bigram(0), Bigram(1)


def preferences(seed=0, most=4):
    chance = np.random.default_rng(seed)
    text = lambda n: chance.integers(2, SIZE, n).tolist()  # noqa: E731
    return [
        {
            "prompt": text(int(chance.integers(1, 6))),
            "answers": [[*text(int(chance.integers(0, 5))), 1] for _ in range(k)],
        }
        for k in (2, most, 3, 2)
    ]


def batch_of(method, samples):
    rng = np.random.default_rng(0)
    return collate.batch([method.prepare(s, rng) for s in samples], "pad")


def made(name, **options):
    return registry.load("alignment", name, options)(VOCABULARY, 32)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def of_pair(name, c, r):
    """The loss of a pair, from the sums and lengths of both answers less the reference's: the papers' formulas."""
    (cs, cn), (rs, rn) = c, r
    gap = 0.1 * (cs - rs)
    return {
        "dpo": lambda: -math.log(sigmoid(gap)),
        "ipo": lambda: (cs - rs - 1 / 0.2) ** 2,
        "hinge": lambda: max(0.0, 1 - gap),
        "robust": lambda: (-0.9 * math.log(sigmoid(gap)) + 0.1 * math.log(sigmoid(-gap))) / 0.8,
        "cdpo": lambda: -0.9 * math.log(sigmoid(gap)) - 0.1 * math.log(sigmoid(-gap)),
        "apo_zero": lambda: 1 - sigmoid(0.1 * cs) + sigmoid(0.1 * rs),
        "apo_down": lambda: sigmoid(0.1 * cs) + 1 - sigmoid(gap),
        "sppo": lambda: (cs - 500) ** 2 + (rs + 500) ** 2,
        "simpo": lambda: -math.log(sigmoid(2 * (cs / cn - rs / rn) - 1)),
        "cpo": lambda: -math.log(sigmoid(gap)),
        "orpo": lambda: -math.log(sigmoid(odds(cs / cn) - odds(rs / rn))),
    }[name]()


def odds(mean):
    p = math.exp(mean)
    return math.log(p / (1 - p))


@pytest.mark.parametrize("name", KIN)
def test_kin_of_dpo_are_their_formulas_over_all_pairs(name, models):
    policy, reference = models
    method, samples = made(name), preferences()
    others = {} if name in FREE else {"reference": reference}
    loss = method.loss(policy, batch_of(method, samples), **others)
    total, best_sum, best_tokens = 0.0, 0.0, 0
    for s in samples:
        scores = []
        for i, answer in enumerate(s["answers"]):
            mine, n = policy.log_probability(s["prompt"], answer)
            if i == 0:
                best_sum, best_tokens = best_sum - mine.item(), best_tokens + n
            theirs = 0.0 if name in FREE else reference.log_probability(s["prompt"], answer)[0].item()
            scores.append((mine.item() - theirs, n))
        pairs = [(a, b) for i, a in enumerate(scores) for b in scores[i + 1 :]]
        total += sum(of_pair(name, a, b) for a, b in pairs) / len(pairs)
    value, count = loss.terms["preference"]
    assert count == len(samples)
    # In float32, as all losses are.
    assert value.item() == pytest.approx(total, rel=2e-6)
    assert loss.weights.get("preference", 1.0) == (0.1 if name == "orpo" else 1.0)
    if name in ("cpo", "orpo"):
        value, count = loss.terms["nll"]
        assert value.item() == pytest.approx(best_sum, rel=1e-6)
        assert count == (len(samples) if name == "cpo" else best_tokens)
    else:
        assert "nll" not in loss.terms
    wanted = [method.targets(method.prepare(s, None)) for s in samples]
    assert {k: int(c) for k, (_, c) in loss.terms.items()} == {k: sum(w[k] for w in wanted) for k in wanted[0]}


def test_dpo_begins_at_ln_2_with_the_gradient_of_its_paper(models):
    policy = models[0]
    method, (sample, *_) = made("dpo", beta=0.3), preferences()
    loss = method.loss(policy, batch_of(method, [sample]), reference=policy)
    assert loss.mean().item() == pytest.approx(math.log(2), rel=1e-7)
    assert loss.logs["margin"][0] == 0 and loss.logs["accuracy"][0] == 0
    (found,) = torch.autograd.grad(loss.mean(), policy.table)
    better, worse = (policy.log_probability(sample["prompt"], a)[0] for a in sample["answers"])
    # At a gap of 0 the gradient is -beta / 2 times that of the two log-probabilities (Rafailov et al. 2023, section 4).
    (wanted,) = torch.autograd.grad(-0.3 / 2 * (better - worse), policy.table)
    torch.testing.assert_close(found, wanted, atol=1e-7, rtol=1e-6)
    assert found[:, SIZE:].abs().max() == 0  # rows of the table that are no tokens


@pytest.mark.parametrize("kl", ["mismatched", "own", "none"])
def test_kto_is_its_formula_over_answers(kl, models):
    policy, reference = models
    method = made("kto", beta=0.2, good_weight=1.3, bad_weight=0.7, kl=kl)
    samples = [{"prompt": s["prompt"], "answer": s["answers"][0], "good": i % 2} for i, s in enumerate(preferences())]
    for i, s in enumerate(samples):
        s["other"] = samples[(i + 1) % len(samples)]

    def ratio(prompt, answer):
        return (policy.log_probability(prompt, answer)[0] - reference.log_probability(prompt, answer)[0]).item()

    points = {
        "mismatched": [ratio(s["prompt"], s["other"]["answer"]) for s in samples],
        "own": [ratio(s["prompt"], s["answer"]) for s in samples],
        "none": [0.0],
    }
    z = max(0.0, float(np.mean(points[kl])))
    total = 0.0
    for s in samples:
        r = ratio(s["prompt"], s["answer"])
        total += 1.3 * (1 - sigmoid(0.2 * (r - z))) if s["good"] else 0.7 * (1 - sigmoid(0.2 * (z - r)))
    value, count = method.loss(policy, batch_of(method, samples), reference=reference).terms["value"]
    assert count == len(samples) and value.item() == pytest.approx(total, rel=1e-6)


def test_a_reward_model_ranks_all_pairs_of_a_prompt_with_one_weight(models):
    policy = models[0]
    method, samples = made("reward", margin=0.4, centre=0.2), preferences()
    loss = method.loss(policy, batch_of(method, samples))
    ranking = centre = 0.0
    for s in samples:
        scores = [float(policy.values[[*s["prompt"], *a]].sum()) for a in s["answers"]]
        pairs = [(a, b) for i, a in enumerate(scores) for b in scores[i + 1 :]]
        ranking += sum(-math.log(sigmoid(a - b - 0.4)) for a, b in pairs) / len(pairs)
        centre += sum((a + b) ** 2 for a, b in pairs) / len(pairs)
    assert loss.terms["ranking"][0].item() == pytest.approx(ranking, rel=1e-6)
    assert loss.terms["centre"][0].item() == pytest.approx(centre, rel=1e-6)
    assert loss.weights == {"centre": 0.2}


def test_ties_are_no_pairs_and_scores_make_margins(models):
    """Of a prompt with ties the others have all of its weight; one whose answers are all tied would have none."""
    policy, reference = models
    scores = [[1.0, 0.0], [3.0, 3.0, 0.5, 0.5], [2.0, 1.5, 1.5], [0.25, -4.0]]
    samples = [{**s, "scores": np.float32(x)} for s, x in zip(preferences(), scores, strict=True)]
    reward, dpo = made("reward", margin=0.1, score_margin=0.5), made("dpo")
    ranking = preference = 0.0
    for s in samples:
        pairs = [(i, j) for i in range(len(s["scores"])) for j in range(i) if s["scores"][i] != s["scores"][j]]
        value = [float(policy.values[[*s["prompt"], *a]].sum()) for a in s["answers"]]
        ratio = [
            (policy.log_probability(s["prompt"], a)[0] - reference.log_probability(s["prompt"], a)[0]).item()
            for a in s["answers"]
        ]
        for worse, better in pairs:
            margin = 0.1 + 0.5 * float(s["scores"][better] - s["scores"][worse])
            ranking -= math.log(sigmoid(value[better] - value[worse] - margin)) / len(pairs)
            preference -= math.log(sigmoid(0.1 * (ratio[better] - ratio[worse]))) / len(pairs)
    value, count = reward.loss(policy, batch_of(reward, samples)).terms["ranking"]
    assert count == 4 and value.item() == pytest.approx(ranking, rel=1e-6)
    value, count = dpo.loss(policy, batch_of(dpo, samples), reference=reference).terms["preference"]
    assert count == 4 and value.item() == pytest.approx(preference, rel=2e-6)


def test_sft_learns_answers_alone(models):
    policy, method = models[0], made("sft")
    talk = {"messages": [[3, 4, 5], [6, 7, 1], [8, 9], [10, 1]], "roles": ["context", "assistant"] * 2}
    packed = collate.joined([method.prepare({k: [np.array(m) for m in v] if k == "messages" else v for k, v in s.items()}, None)
                             for s in (talk, {k: v[2:] for k, v in talk.items()})])  # fmt: skip
    loss = method.loss(policy, collate.batch([packed], "pad"))
    wanted = [policy.log_probability(p, a, ROWS) for p, a in (([5], [6, 7, 1]), ([9], [10, 1]), ([9], [10, 1]))]
    value, count = loss.terms["nll"]
    assert count == 7 == sum(n for _, n in wanted)
    assert value.item() == pytest.approx(-sum(s.item() for s, _ in wanted), rel=1e-6)
    (slope,) = torch.autograd.grad(value, policy.table)
    # Rows of tokens after which an answer's token comes, and no others.
    assert sorted(torch.nonzero(slope.abs().sum(1))[:, 0].tolist()) == [5, 6, 7, 9, 10]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("dpo", {"beta": 0}, "alignment.beta and alignment.weight must be more than 0"),
        ("dpo", {"label_smoothing": 0.5}, "alignment.label_smoothing must be in"),
        ("ipo", {"label_smoothing": 0.1}, "has no effect with loss=ipo"),
        ("ipo", {"margin": 1.0}, "has no effect with loss=ipo"),
        ("kto", {"beta": -1}, "alignment.beta must be more than 0"),
        ("reward", {"centre": -1}, "alignment.centre must be at least 0"),
    ],
)
def test_options_that_can_not_be_are_refused(name, options, said):
    with pytest.raises(ValueError, match=said):
        made(name, **options)
