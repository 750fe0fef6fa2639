"""Rules that give rewards, and the baseline of REINFORCE."""

import itertools

import numpy as np
import pytest
import torch
from parts import part

from llmlab.data import collate
from llmlab.slots import Output, Vocabulary


@pytest.mark.parametrize(
    ("name", "options", "right", "worth"),
    [
        ("exact", {}, ["7", " 7\n"], ["77", "", "8", "seven"]),
        ("exact", {"field": "other"}, ["x"], ["7"]),
        ("contains", {}, ["7", "a7b"], ["", "8"]),
        ("contains", {"text": "ab"}, ["cabd"], ["7", "a b"]),
        ("ends_with", {}, ["7", "x7 "], ["7x", ""]),
        ("ends_with", {"text": "."}, ["A.", "B. \n"], ["A. B"]),
    ],
)
def test_rules(name, options, right, worth):
    reward = part("reward", name, **options)()
    answers = [*right, *worth]
    scores = reward.score([{"prompt": "p", "answer": "7", "other": "x"}] * len(answers), answers)
    assert scores == [1.0] * len(right) + [0.0] * len(worth)
    assert set(reward.needs) == (set() if "text" in options else {options.get("field", "answer")})


def reinforce(**options):
    return part("alignment", "reinforce", **options)(Vocabulary(20, {"eos": 0}), 16)


def test_each_answer_is_compared_with_the_others_to_its_prompt():
    rewards = np.array([[1.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
    want = [[1 - 1 / 3, -2 / 3, -2 / 3, 1 - 1 / 3], [0, 0, 0, 0]]
    np.testing.assert_allclose(reinforce(samples=4).advantages(rewards), want)
    one = np.array([[1.0], [0.0], [0.5]])
    np.testing.assert_allclose(reinforce(samples=1).advantages(one), [[0.75], [-0.75], [0.0]])
    assert reinforce(samples=1).advantages(np.array([[3.0]])).tolist() == [[3.0]]


def test_the_gradient_is_unbiased():
    """Summed over every pair of answers with its probability it is the gradient of the expected reward, exactly."""
    theta = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    reward = torch.tensor([0.0, 1.0, 0.2, -1.0, 3.0], dtype=torch.float64)
    (want,) = torch.autograd.grad((theta.softmax(0) * reward).sum(), theta)
    log_p, found = theta.log_softmax(0), torch.zeros_like(theta)
    for pair in itertools.product(range(5), repeat=2):
        advantages = reinforce(samples=2).advantages(reward[list(pair)][None].numpy())[0]
        chance = log_p[list(pair)].sum().exp().detach()
        loss = sum(a * log_p[i] for a, i in zip(advantages, pair, strict=True)) / 2
        found += chance * torch.autograd.grad(loss, theta, retain_graph=True)[0]
    torch.testing.assert_close(found, want)


def test_the_loss_is_advantage_times_importance_ratio_summed_over_the_tokens_of_each_answer():
    made = reinforce(temperature=0.5)
    answers = [([1, 2, 3], [4, 5]), ([6], [7, 8, 9, 0])]  # prompt and answer
    drawn = [[-1.0, -2.0], [-0.5, -1.5, -2.5, -0.1]]
    advantages, rewards = [0.75, -2.0], [1.0, 0.25]
    samples = [
        made.prepare({"prompt": p, "answer": a, "log_probabilities": d, "advantage": v, "reward": r}, None)
        for (p, a), d, v, r in zip(answers, drawn, advantages, rewards, strict=True)
    ]
    batch = collate.batch(samples, "pad")
    logits = torch.randn(*batch["ids"].shape, 24, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def model(read, *, heads):
        assert read.keys() == {"ids", "valid"}
        return Output(logits, {"tokens": logits[heads["tokens"]]}, None)

    loss = made.loss(model, batch)
    want = 0.0
    for row, ((p, a), d, advantage) in enumerate(zip(answers, drawn, advantages, strict=True)):
        for i, (token, then) in enumerate(zip(a, d, strict=True)):
            # The table has 24 rows, of which the tokenizer uses 20.
            now = torch.log_softmax(logits[row, len(p) - 1 + i, :20] / 0.5, 0)[token]
            want = want - advantage * torch.exp(now - then)
    assert loss.terms.keys() == {"policy"} == made.targets(samples[0]).keys()
    torch.testing.assert_close(loss.terms["policy"], (want, torch.tensor(2)))
    assert [float(s / n) for s, n in list(loss.logs.values())[:2]] == [0.625, 3.0]
    (slope,) = torch.autograd.grad(loss.mean(), logits)
    torch.testing.assert_close(slope, torch.autograd.grad(want / 2, logits)[0])


def test_a_validation_is_the_negative_mean_reward():
    judged = {"reward": torch.tensor([1.0, 0.0, 0.5]), "answer_length": torch.tensor([1, 4, 1])}
    loss = reinforce().loss(None, judged)
    assert float(loss.mean()) == -0.5 and [float(s / n) for s, n in loss.logs.values()] == [0.5, 2.0]


@pytest.mark.parametrize(
    ("options", "named"),
    [({"samples": 0}, "alignment.samples"), ({"temperature": 0.0}, "alignment.temperature"), ({"epochs": 0}, "epochs")],
)
def test_options_out_of_range(options, named):
    with pytest.raises(ValueError, match=named):
        reinforce(**options)


@pytest.mark.parametrize("name", ["exact", "contains", "ends_with"])
def test_each_answer_has_its_record(name):
    with pytest.raises(ValueError, match="zip"):
        part("reward", name)().score([{"answer": "7"}], ["7", "8"])
