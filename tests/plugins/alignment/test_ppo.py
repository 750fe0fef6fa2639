"""PPO with a critic: advantages against their definition, the loss by loops, the best policy where it is known."""

import numpy as np
import pytest
import torch
from parts import part

from llmlab.data import collate
from llmlab.slots import Answers, Output, Vocabulary

SIZE = 12


def made(**options):
    return part("alignment", "ppo", **{"max_new": 6, **options})(Vocabulary(SIZE, {"eos": 0}), 16)


def rolled(seed=0, lengths=(3, 5, 1, 4), truncated=None):
    chance = np.random.default_rng(seed)
    n, a = len(lengths), max(lengths)
    measured = {"reference": chance.normal(size=(n, a)), "value": chance.normal(size=(n, a)), "kl": chance.random(n)}
    ends = np.zeros(n, bool) if truncated is None else np.array(truncated)
    return Answers(chance.normal(size=n), np.array(lengths), ends, chance.normal(size=(n, a)), measured, 1)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 0.0), (0.7, 1.0)])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_advantages_are_their_definition(gamma, lam, estimator):
    """Equation 16 of Schulman et al. 2016: the sum over l of (gamma lam)^l delta, of rewards with a KL of each token."""
    said = rolled(truncated=[0, 1, 0, 0])
    found = made(gamma=gamma, lam=lam, estimator=estimator, whiten=False, beta=0.3, no_end=2.0).credit(said)
    for i, n in enumerate(said.lengths):
        gaps = said.log_probabilities[i] - said.measured["reference"][i]
        kl = {"k1": gaps, "k2": gaps**2 / 2, "k3": np.exp(-gaps) - 1 + gaps}[estimator]
        rewards = [-0.3 * kl[t] + (said.rewards[i] - 2.0 * (i == 1)) * (t == n - 1) for t in range(n)]
        values = [*said.measured["value"][i, :n], 0.0]
        deltas = [rewards[t] + gamma * values[t + 1] - values[t] for t in range(n)]
        want = [sum((gamma * lam) ** (s - t) * deltas[s] for s in range(t, n)) for t in range(n)]
        np.testing.assert_allclose(found["advantage"][i], want + [0.0] * (5 - n), atol=1e-12)
        np.testing.assert_allclose(found["return"][i, :n], np.add(want, values[:-1]))
        if lam == 1.0:  # then a return is that of the rewards alone
            alone = [sum(gamma ** (s - t) * rewards[s] for s in range(t, n)) for t in range(n)]
            np.testing.assert_allclose(found["return"][i, :n], alone)


def test_whitening_is_over_the_tokens_that_there_are():
    said = rolled()
    raw, white = (made(whiten=w).credit(said)["advantage"] for w in (False, True))
    there = np.arange(5) < said.lengths[:, None]
    np.testing.assert_allclose(white[there], (raw[there] - raw[there].mean()) / raw[there].std())
    assert not white[~there].any()
    known = made().credit(said)
    spread = known["return"][there].var()
    left = (known["return"] - known["value"])[there].var()
    np.testing.assert_allclose(known["explained_variance"], 1 - left / spread)


def test_beta_adapts_to_its_target_by_a_bounded_error_and_is_kept():
    objective = made(target=0.5, beta=0.1)
    said = rolled()
    for mean, by in ((0.55, 1.01), (5.0, 1.02), (0.0, 0.98)):
        before = objective.coefficient
        said.measured["kl"][:] = mean
        assert objective.credit(said)["coefficient"] == pytest.approx(before)
        assert objective.coefficient == pytest.approx(before * by)
    again = made(target=0.5, beta=0.1)
    again.load(objective.state())
    assert again.coefficient == objective.coefficient and made().state() == {}


class Scores:
    def __init__(self, **heads):
        self.heads = heads

    def __call__(self, read, *, heads):
        return Output(read["ids"], {role: self.heads[role][at] for role, at in heads.items()}, None)


@pytest.mark.parametrize("critic", ["own", "shared"])
@pytest.mark.parametrize("value_clip", [0.2, None])
def test_the_loss_is_clipped_and_a_mean_over_tokens(critic, value_clip):
    objective = made(critic=critic, value_clip=value_clip, temperature=0.8, value_weight=0.4)
    chance, lengths = np.random.default_rng(0), [3, 5, 1, 4]
    samples = []
    for i, n in enumerate(lengths):
        own = {name: chance.normal(size=n) for name in ("advantage", "value", "return")}
        answer = {"prompt": chance.integers(1, SIZE, 1 + i), "answer": chance.integers(0, SIZE, n)}
        samples.append({**answer, "log_probabilities": -2 - chance.random(n), **own})
    prepared = [objective.prepare(s, None) for s in samples]
    batch = collate.batch(prepared, "pad")
    torch.manual_seed(0)
    logits = torch.randn(*batch["ids"].shape, SIZE, dtype=torch.float64, requires_grad=True)
    values = torch.randn(*batch["ids"].shape, dtype=torch.float64, requires_grad=True)
    if critic == "own":
        loss = objective.loss(Scores(tokens=logits), batch, critic=Scores(value=values), reference=None)
    else:
        loss = objective.loss(Scores(tokens=logits, value=values), batch, reference=None)
    policy = value = 0.0
    for row, s in enumerate(samples):
        for t in range(lengths[row]):
            at = len(s["prompt"]) - 1 + t
            now = torch.log_softmax(logits[row, at] / 0.8, 0)[int(s["answer"][t])]
            r, a = (now - s["log_probabilities"][t]).exp(), s["advantage"][t]
            policy = policy - torch.minimum(r * a, r.clamp(0.8, 1.2) * a) / 13
            v, then, to = values[row, at], s["value"][t], s["return"][t]
            off = (v - to) ** 2
            held = off if value_clip is None else (then + (v - then).clamp(-value_clip, value_clip) - to) ** 2
            value = value + torch.maximum(off, held) / 2 / 13
    assert {k: sum(objective.targets(p)[k] for p in prepared) for k in loss.terms} == {"policy": 13, "value": 13}
    want = policy + 0.4 * value
    torch.testing.assert_close(loss.mean().double(), want, atol=1e-6, rtol=1e-6)
    for leaf in (logits, values):
        ours, by_hand = (torch.autograd.grad(x, leaf, retain_graph=True)[0] for x in (loss.mean(), want))
        torch.testing.assert_close(ours, by_hand, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gamma": 1.5}, r"alignment.gamma must be in \[0, 1\], but is 1.5"),
        ({"value_weight": -1.0}, "alignment.value_weight must be at least 0, but is -1.0"),
        ({"target": 0.5, "beta": 0.0}, "must be more than 0"),
        ({"epochs": 0}, "alignment.epochs must be at least 1"),
    ],
)
def test_options_that_cannot_be(options, said):
    with pytest.raises(ValueError, match=said):
        made(**options)
