"""GRPO and its kin: advantages, ratios, bounds and means against their formulas, by loops, and against TRL 1.16."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from parts import part

from llmlab.data import collate
from llmlab.slots import Answers, Output, Vocabulary

NAMES = ("grpo", "dr_grpo", "dapo", "cispo", "gspo", "reinforce_pp", "rloo", "reinforce")
SIZE, EOS = 12, 0
TRL = json.loads(Path(__file__).with_name("trl.json").read_text())


def made(name, **options):
    return part("alignment", name, **{"max_new": 6, **options})(Vocabulary(SIZE, {"eos": EOS}), 16)


def answers(rewards, samples, lengths=None, drawn=None, **measured):
    rewards = np.asarray(rewards, np.float64)
    lengths = np.full(len(rewards), 2) if lengths is None else np.asarray(lengths)
    drawn = np.zeros((len(rewards), lengths.max())) if drawn is None else np.asarray(drawn)
    return Answers(rewards, lengths, lengths < 0, drawn, measured, samples)


class Scores:
    """A model of given logits (B, T, V)."""

    def __init__(self, logits):
        self.logits = logits

    def __call__(self, read, *, heads):
        return Output(self.logits, {"tokens": self.logits[heads["tokens"]]}, None)


# ---------------------------------------------------------------- advantages


def test_advantages_are_those_of_the_papers():
    rewards = [1.0, 0.0, 0.0, 1.0, 0.5, 2.5, 1.0, 4.0]
    grid = np.array(rewards).reshape(2, 4)
    less = grid - grid.mean(1, keepdims=True)
    want = {
        "grpo": less / np.array([[np.sqrt(1 / 3)], [np.sqrt(np.sum(less[1] ** 2) / 3)]]),
        "dr_grpo": less,
        "reinforce": np.array([[r - (row.sum() - r) / 3 for r in row] for row in grid]),
    }
    for name, by_hand in want.items():
        found = made(name, samples=4).credit(answers(rewards, 4))
        np.testing.assert_allclose(found["advantage"].reshape(2, 4), by_hand)
        assert set(found["flat_groups"]) == {0.0}
        np.testing.assert_allclose(found["reward_std"][[0, 4]], grid.std(1))
    by_rollout = made("grpo", samples=4, advantage="mean_batch").credit(answers(rewards, 4))["advantage"]
    np.testing.assert_allclose(by_rollout, less.reshape(-1) / np.std(rewards, ddof=1))
    eps = made("grpo", samples=4, std_eps=1e-4).credit(answers(rewards, 4))["advantage"]
    np.testing.assert_allclose(eps[0], 0.5 / (np.sqrt(1 / 3) + 1e-4))


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("rloo", "reinforce_pp")])
def test_equal_rewards_have_no_advantage_at_all(name):
    for reward in (0.1, 0.0, 1 / 3, -7.3):
        rewards = np.full(8, np.float32(reward), np.float64)
        found = made(name, samples=8).credit(answers(rewards, 8))
        assert found["advantage"].tolist() == [0.0] * 8 and set(found["flat_groups"]) == {1.0}
    # Sums of the same weights in another order.
    same = np.float32([0.1 + 0.2 + 0.3, 0.3 + 0.2 + 0.1, np.float32(0.1) + np.float32(0.2) + np.float32(0.3)])
    assert made(name, samples=3).credit(answers(same, 3))["advantage"].tolist() == [0.0] * 3
    mixed = made(name, samples=2).credit(answers([0.1, 0.1, 1.0, 0.0], 2))
    assert mixed["advantage"][:2].tolist() == [0, 0] and all(mixed["advantage"][2:])
    assert mixed["flat_groups"].tolist() == [1, 1, 0, 0]


def test_a_kl_in_the_reward_counts_for_the_answer_or_from_the_token_on():
    rewards, lengths = [1.0, 0.0, 0.25], [2, 3, 1]
    drawn = np.array([[-1.0, -2.0, 0], [-0.5, -1.5, -1.0], [-3.0, 0, 0]])
    reference = np.array([[-1.5, -1.0, 9], [-0.25, -2.5, -1.0], [-2.0, 9, 9]])  # what is behind an answer is not read
    gaps = [[drawn[i, t] - reference[i, t] for t in range(n)] for i, n in enumerate(lengths)]
    measured = {"reference": reference, "kl": np.array([0.1, 0.2, 0.3])}
    whole = [r - 0.5 * sum(row) for r, row in zip(rewards, gaps, strict=True)]
    found = made("rloo", samples=3, beta=0.5).credit(answers(rewards, 3, lengths, drawn, **measured))
    np.testing.assert_allclose(found["advantage"], [w - (sum(whole) - w) / 2 for w in whole])
    assert found["kl"].tolist() == [0.1, 0.2, 0.3]
    for how, of in {"k1": lambda g: g, "k2": lambda g: g * g / 2, "k3": lambda g: np.exp(-g) - 1 + g}.items():
        part = made("reinforce_pp", samples=1, beta=0.5, estimator=how)
        found = part.credit(answers(rewards, 1, lengths, drawn, **measured))["advantage"]
        to_go = [
            [r - 0.5 * sum(map(of, row[t:])) for t in range(len(row))] for r, row in zip(rewards, gaps, strict=True)
        ]
        flat = [x for row in to_go for x in row]
        for i, row in enumerate(to_go):
            by_hand = [(x - np.mean(flat)) / np.std(flat, ddof=1) for x in row]
            np.testing.assert_allclose(found[i], by_hand + [0.0] * (3 - len(row)))


def test_an_answer_that_is_nearly_too_long_is_punished():
    found = made("dapo", samples=2, max_new=10, advantage="mean").credit(answers([0] * 6, 2, [8, 9, 1, 10, 8, 1]))
    np.testing.assert_allclose(found["advantage"], [0.25, -0.25, 0.5, -0.5, 0, 0])


# ---------------------------------------------------------------- the loss


def batch_of(objective, lengths, *, seed=0, by_token=False, advantages=None, then=None, truncated=None):
    """Ragged answers to prompts of ragged lengths, and logits in float64."""
    chance = np.random.default_rng(seed)
    samples = []
    for i, n in enumerate(lengths):
        advantage = chance.normal(size=n if by_token else None) if advantages is None else advantages[i]
        samples.append(
            {
                "prompt": chance.integers(1, SIZE, 1 + i % 3),
                "answer": chance.integers(0, SIZE, n),
                "log_probabilities": -2 * chance.random(n) - 1.5 if then is None else then[i],
                "advantage": advantage,
                "reward": 0.5 * i,
                "truncated": 0.0 if truncated is None else float(truncated[i]),
                "kl": 0.125,
            }
        )
    prepared = [objective.prepare(sample, None) for sample in samples]
    batch = collate.batch(prepared, "pad")
    scores = torch.randn(
        2, *batch["ids"].shape, SIZE + 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    return samples, prepared, batch, scores[0].requires_grad_(), scores[1]


def by_loops(objective, samples, logits, reference):
    """(policy, penalty) as a number with gradients, and clipped tokens, from the formulas."""
    o, tau = objective, objective.rollout.temperature
    policy, penalty, clipped, counted = [], [], 0, []
    for row, s in enumerate(samples):
        first, n = len(s["prompt"]) - 1, len(s["answer"])

        def log_p(of, t, row=row, s=s, first=first):
            return torch.log_softmax(of[row, first + t, :SIZE] / tau, 0)[int(s["answer"][t])]

        now = [log_p(logits, t) for t in range(n)]
        gaps = [x - float(np.float32(then)) for x, then in zip(now, s["log_probabilities"], strict=True)]
        sums = {"token": gaps, "sequence": [sum(gaps) / n] * n, "product": [sum(gaps)] * n}[o.ratio]
        losses, penalties = [], []
        for t, gap in enumerate(sums):
            a = float(np.float32(s["advantage"] if np.ndim(s["advantage"]) == 0 else s["advantage"][t]))
            r = gap.exp()
            low, high = (
                1 - (np.inf if o.clip_low is None else o.clip_low),
                1 + (np.inf if o.clip_high is None else o.clip_high),
            )
            held = r if low <= r <= high else torch.tensor(low if r < low else high, dtype=torch.float64)
            if o.clip == "cispo":
                losses.append(-held.detach() * a * now[t])
                clipped += int(held is not r)
            else:
                losses.append(-torch.minimum(r * a, held * a))
                clipped += int(bool(held * a < r * a))
            if o.kl == "loss":
                g = now[t] - log_p(reference, t)
                penalties.append(g * g / 2 if o.estimator == "k2" else torch.exp(-g) - 1 + g)
        if o.mask_truncated and s["truncated"]:
            continue
        counted.append(n)
        policy.append(losses)
        penalty.append(penalties)

    def mean(rows):
        totals = [sum(row) for row in rows]
        match o.aggregation:
            case "token_mean":
                return sum(totals) / sum(counted)
            case "sequence_mean":
                return sum(t / n for t, n in zip(totals, counted, strict=True)) / len(totals)
            case "sequence_sum":
                return sum(totals) / len(totals)
            case _:
                return sum(totals) / len(totals) / o.length

    return mean(policy), mean(penalty) if o.kl == "loss" else None, clipped


CASES = [
    *((name, {}) for name in NAMES),
    ("grpo", {"temperature": 0.7, "estimator": "k2"}),
    ("grpo", {"kl": "shown", "beta": 0.0, "clip_low": None}),
    ("grpo", {"mask_truncated": True, "aggregation": "token_mean"}),
    ("dr_grpo", {"length": 9, "mask_truncated": True}),
    ("rloo", {"ratio": "product", "aggregation": "sequence_mean", "clip_low": 0.2, "clip_high": 0.2}),
    ("cispo", {"clip_low": 0.5, "clip_high": 0.1, "ratio": "sequence"}),
]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_loss_and_its_gradient_are_those_of_the_formula_on_ragged_answers(name, options):
    objective = made(name, **options)
    found = batch_of(objective, [3, 6, 1, 4], by_token=name == "reinforce_pp", truncated=[0, 1, 0, 0])
    samples, prepared, batch, logits, others = found
    beside = {"reference": Scores(others)} if objective.kl in ("loss", "shown") else {}
    loss = objective.loss(Scores(logits), batch, **beside)
    policy, penalty, clipped = by_loops(objective, samples, logits, others)
    want = policy if penalty is None else policy + objective.beta * penalty
    counts = {term: torch.tensor(sum(objective.targets(p)[term] for p in prepared)) for term in loss.terms}
    assert all(int(loss.counts[term]) == int(n) for term, n in counts.items())
    torch.testing.assert_close(loss.mean(counts).double(), want, rtol=1e-6, atol=1e-6)
    (slope,), (by_hand,) = (torch.autograd.grad(x, logits) for x in (loss.mean(counts), want))
    torch.testing.assert_close(slope, by_hand, rtol=1e-5, atol=1e-6)
    labels = batch["labels"]
    assert not slope[labels == -100].any()  # neither prompts nor padding
    shown = {k: float(s / n) for k, (s, n) in loss.logs.items()}
    assert shown["clip_fraction"] == pytest.approx(clipped / 14) and shown["truncated"] == 0.25
    at = labels != -100
    p, q = ((x[at][:, :SIZE] / objective.rollout.temperature).log_softmax(-1) for x in (logits.detach(), others))
    assert shown["entropy"] == pytest.approx(float(-(p.exp() * p).sum() / 14), rel=1e-5)
    if beside:
        assert shown["kl"] == pytest.approx(float((p.exp() * (p - q)).sum() / 4), rel=1e-5)
    elif objective.kl == "reward":
        assert shown["kl"] == 0.125


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_may_be_cut_in_any_way(name):
    objective = made(name)
    _, prepared, batch, logits, others = batch_of(objective, [3, 6, 1, 4], by_token=name == "reinforce_pp")
    reference = {"reference": Scores(others)} if objective.kl == "loss" else {}
    whole = objective.loss(Scores(logits), batch, **reference)
    counts = {k: torch.tensor(sum(objective.targets(p)[k] for p in prepared)) for k in whole.terms}
    pieces = 0.0
    for i, one in enumerate(prepared):
        alone = collate.batch([one], "pad")
        width = alone["ids"].shape[1]
        beside = {"reference": Scores(others[i : i + 1, :width])} if reference else {}
        pieces = pieces + objective.loss(Scores(logits[i : i + 1, :width]), alone, **beside).mean(counts, 4) / 4
    torch.testing.assert_close(pieces, whole.mean(counts))


def test_the_first_inner_step_of_grpo_without_a_kl_has_loss_0_and_a_gradient():
    objective = made("grpo", kl="none", beta=0.0, samples=4)
    credit = objective.credit(answers([1.0, 0.0, 0.0, 0.0], 4))["advantage"]
    samples, _, _, logits, _ = batch_of(objective, [3, 6, 1, 4])
    for row, s in enumerate(samples):
        first = len(s["prompt"]) - 1
        log_p = torch.log_softmax(logits[row, first : first + len(s["answer"]), :SIZE], -1)
        s |= {"log_probabilities": log_p[range(len(s["answer"])), s["answer"]].detach(), "advantage": credit[row]}
    batch = collate.batch([objective.prepare(s, None) for s in samples], "pad")
    loss = objective.loss(Scores(logits), {**batch, "log_probabilities": batch["log_probabilities"].double()}).mean()
    assert abs(loss.item()) < 1e-6 and torch.autograd.grad(loss, logits)[0].abs().max() > 0.01


@pytest.mark.parametrize("name", TRL["cases"])
def test_trl_has_the_same_loss_and_gradient(name):
    """Of log-probabilities: TRL's multiply hidden states by the output matrix, whatever else a head does."""
    rloo = {
        "ratio": "product",
        "aggregation": "sequence_mean",
        "clip_low": 0.2,
        "clip_high": 0.2,
        "kl": "none",
        "beta": 0.0,
    }
    options = {"rloo": rloo, "cispo": {"clip_high": 0.25}}.get(name, {})
    objective = made(name, max_new=5, **options)
    batch = batch_of(objective, TRL["lengths"], advantages=TRL["advantages"], then=TRL["then"])[2]
    at = batch["labels"] != -100
    labels = batch["labels"][at]

    def logits_of(rows):
        """Logits whose log-softmax at the label is the given number: log p there, and log (1 - p) over the others."""
        log_p = torch.tensor([x for row in rows for x in row], dtype=torch.float64).requires_grad_()
        rest = torch.log(-torch.expm1(log_p)) - np.log(SIZE - 1)
        one_hot = torch.nn.functional.one_hot(labels, SIZE).bool()
        logits = torch.where(one_hot, log_p[:, None], rest[:, None])
        whole = torch.zeros(*at.shape, SIZE, dtype=torch.float64).masked_scatter(at[..., None], logits)
        return log_p, Scores(whole)

    (leaf, model), (_, reference) = (logits_of(TRL[key]) for key in ("now", "reference"))
    loss = objective.loss(model, batch, **({"reference": reference} if objective.kl == "loss" else {})).mean()
    want = TRL["cases"][name]
    assert loss.item() == pytest.approx(want["loss"], abs=1e-6)
    (slope,) = torch.autograd.grad(loss, leaf)
    by_trl = torch.tensor([x for row in want["slope"] for x in row], dtype=torch.float64)
    torch.testing.assert_close(slope, by_trl, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- the KL


def test_estimators_and_their_gradients_against_the_exact_kl():
    surrogates = pytest.importorskip("llmlab_plugins.alignment._surrogate")
    chance = torch.Generator().manual_seed(1)
    theta = torch.randn(6, dtype=torch.float64, generator=chance).requires_grad_()
    q = torch.randn(6, dtype=torch.float64, generator=chance).log_softmax(0)
    p = theta.log_softmax(0)
    kl, back = (p.exp() * (p - q)).sum(), (q.exp() * (q - p)).sum()
    weight = p.exp().detach()
    for how in ("k1", "k3"):
        torch.testing.assert_close((weight * surrogates.kl_estimate(p - q, how)).sum(), kl)
    slopes = {
        how: torch.autograd.grad((weight * surrogates.kl_estimate(p - q, how)).sum(), theta, retain_graph=True)[0]
        for how in ("k1", "k2", "k3")
    }
    of_kl, of_back = (torch.autograd.grad(x, theta, retain_graph=True)[0] for x in (kl, back))
    torch.testing.assert_close(slopes["k1"], torch.zeros_like(theta))
    torch.testing.assert_close(slopes["k2"], of_kl)
    torch.testing.assert_close(slopes["k3"], of_back)


def test_exact_kl_of_tokens_adds_up_to_that_of_answers():
    """By the chain rule: over all answers of two tokens, with their probabilities."""
    from llmlab.policy import exact_kl

    chance = torch.Generator().manual_seed(2)
    p, q = (torch.randn(4, 3, dtype=torch.float64, generator=chance).log_softmax(-1) for _ in range(2))
    found = whole = 0.0  # row 0: of the first token; rows 1 to 3: of the second after each
    for a, b in itertools.product(range(3), repeat=2):
        log_p, log_q = p[0, a] + p[1 + a, b], q[0, a] + q[1 + a, b]
        whole += log_p.exp() * (log_p - log_q)
        found += log_p.exp() * exact_kl(p[[0, 1 + a]], q[[0, 1 + a]]).sum()
    torch.testing.assert_close(found, whole)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("grpo", {"samples": 1}, "alignment.samples must be at least 2 with advantage=group"),
        ("grpo", {"beta": 0.0}, "kl=loss has: give one above 0, or kl=shown"),
        ("dapo", {"beta": 0.1}, "kl=none has not: give kl=loss or kl=reward, or beta=0"),
        ("dapo", {"estimator": "k2"}, "alignment.estimator=k2 has no effect with kl=none"),
        ("grpo", {"estimator": "k1"}, "a gradient of mean 0"),
        ("grpo", {"length": 9}, "alignment.length=9 has no effect with aggregation=sequence_mean"),
        ("dr_grpo", {"length": 0}, "alignment.length must be at least 1, but is 0"),
        ("grpo", {"clip_low": 1.5}, "at most 1, but are 0.0 and 1.5"),
        ("grpo", {"clip_high": -0.1}, "alignment.clip_high must be at least 0, but is -0.1"),
        (
            "reinforce_pp",
            {"ratio": "product"},
            "a return for each token, and alignment.ratio=product one for each answer",
        ),
        ("grpo", {"temperature": 0.0}, "alignment.temperature"),
    ],
)
def test_options_that_cannot_be(name, options, said):
    with pytest.raises(ValueError, match=said):
        made(name, **options)
