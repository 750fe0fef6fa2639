"""Methods whose best policy is known find it: KL(pi || pi*) becomes small, from several seeds, in seconds."""

import bandits
import pytest
import torch
from parts import part

from llmlab.slots import Vocabulary

BETA = 0.5
# With the KL in the reward all answers are worth the same under the best policy, so that nothing is left to chance there; in
# the loss the rewards of a batch still differ.
BOUND, NOISY = 5e-3, 2e-2
SEEDS = [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2, 3, 4))]  # half a second each


def made(name, **options):
    return part("alignment", name, **options)(Vocabulary(bandits.TOKENS, {}), 16)


def found(objective, seed, length, **how):
    """(KL to the best policy, policy, reference, rewards)."""
    policy, reference, rewards = bandits.trained(objective, seed, length=length, **{"steps": 220, "lr": 0.2, **how})
    target = bandits.best(reference, rewards, BETA)
    assert bandits.gap(reference, target, rewards) > 0.1
    return bandits.gap(policy, target, rewards), policy, reference, rewards


OPTIMAL = {
    "rloo": {"beta": BETA, "samples": 4},
    # Without a standard deviation, by which the rewards of each prompt would have another beta.
    "dr_grpo": {"kl": "reward", "beta": BETA, "samples": 8, "max_new": 2},
    "grpo": {"kl": "reward", "beta": BETA, "advantage": "mean", "aggregation": "sequence_sum"},
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", OPTIMAL)
def test_with_the_kl_in_the_reward_the_best_policy_is_found(name, seed):
    assert found(made(name, **OPTIMAL[name]), seed, 2)[0] < BOUND


@pytest.mark.parametrize("seed", SEEDS)
def test_of_one_token_k2_in_the_loss_finds_it_too(seed):
    assert found(made("grpo", advantage="mean", beta=BETA, estimator="k2"), seed, 1)[0] < NOISY


@pytest.mark.parametrize("seed", SEEDS)
def test_k3_in_the_loss_has_another_fixed_point(seed):
    """Its gradient is that of KL(reference || policy): pi(y) = beta pi_ref(y) / (c - r(y)), c such that it adds up to 1."""
    away, policy, reference, rewards = found(made("grpo", advantage="mean", beta=BETA), seed, 1)
    p_ref = torch.stack([reference.log_p(y).exp() for y in rewards]).double()
    r = torch.tensor(list(rewards.values()), dtype=torch.float64)
    low, high = r.max() + 1e-9, r.max() + BETA + 1e-9
    for _ in range(60):
        c = (low + high) / 2
        low, high = (c, high) if (BETA * p_ref / (c - r)).sum() > 1 else (low, c)
    target = (BETA * p_ref / (c - r)).log()
    assert bandits.gap(policy, target, rewards) < min(BOUND, away)
