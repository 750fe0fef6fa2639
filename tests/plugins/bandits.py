"""A policy of few tokens and steps, whose best policy is known: pi*(y) is proportional to pi_ref(y) exp(r(y) / beta).

The model is a table of bigrams, which is any distribution over answers of two tokens. No token ends an answer.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor, nn

from llmlab.slots import Answers, Output

TOKENS = 4  # the first of them is the prompt, and never an answer's
FORBIDDEN = -30.0


class Bigrams(nn.Module):
    """Logits (V, V) of the next token by the last; a value (V,) where it is asked for."""

    def __init__(self, seed: int, scale: float = 1.0):
        super().__init__()
        chance = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(scale * torch.randn(TOKENS, TOKENS, generator=chance))
        self.values = nn.Parameter(torch.zeros(TOKENS))

    def forward(self, read, *, heads):
        barred = torch.zeros(TOKENS).index_fill(0, torch.tensor(0), FORBIDDEN)
        found = {"tokens": (self.table + barred)[read["ids"]], "value": self.values[read["ids"]]}
        return Output(found["tokens"], {role: found[role][at] for role, at in heads.items()}, None)

    def log_p(self, answer: tuple[int, ...]) -> Tensor:
        rows = (self.table[:, 1:]).log_softmax(-1)
        return sum(rows[a, b - 1] for a, b in itertools.pairwise((0, *answer)))

    def draw(self, n: int, length: int, chance: np.random.Generator) -> np.ndarray:
        """(n, length) answers."""
        rows = self.table[:, 1:].detach().double().softmax(-1).numpy()
        last, found = np.zeros(n, np.int64), []
        for _ in range(length):
            last = 1 + (rows[last].cumsum(-1) < chance.random(n)[:, None]).sum(1).clip(max=TOKENS - 2)
            found.append(last)
        return np.stack(found, 1)


def answers_of(length: int) -> list[tuple[int, ...]]:
    return list(itertools.product(range(1, TOKENS), repeat=length))


def trained(
    objective, seed: int, *, length: int, steps: int, lr: float, answers: int = 96, epochs: int = 1, critic=None
):
    """(policy, reference, rewards by answer) after so many rollouts, as the feed and the module make them."""
    chance = np.random.default_rng(seed)
    reference, policy = Bigrams(seed).requires_grad_(False), Bigrams(seed)
    rewards = dict(zip(answers_of(length), chance.normal(size=(TOKENS - 1) ** length), strict=True))
    models = {"reference": reference, **({"critic": critic} if critic is not None else {})}
    parameters = [p for m in (policy, critic) if m is not None for p in m.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps * epochs)
    for _ in range(steps):
        drawn = policy.draw(answers, length, chance)
        with torch.no_grad():
            rows = (policy.table[:, 1:]).log_softmax(-1).numpy()
        before = np.concatenate([np.zeros((answers, 1), np.int64), drawn[:, :-1]], 1)
        log_p = rows[before, drawn - 1]
        lengths, worth = np.full(answers, length), np.array([rewards[tuple(a)] for a in drawn.tolist()])
        batch = {
            "ids": before, "labels": drawn, "valid": before >= 0, "log_probabilities": log_p, "answer_length": lengths,
            "reward": worth, "truncated": np.zeros(answers), "advantage": np.zeros(answers),
        }  # fmt: skip
        batch = {name: torch.from_numpy(of) for name, of in batch.items()}
        with torch.no_grad():
            measured = {k: v.double().numpy() for k, v in objective.measure(policy, batch, **models).items()}
        said = Answers(worth, lengths, lengths > length, log_p, measured, objective.rollout.samples)
        batch |= {name: torch.from_numpy(of.astype(np.float32)) for name, of in objective.credit(said).items()}
        for _ in range(epochs):
            optimizer.zero_grad()
            objective.loss(policy, batch, **models).mean().backward()
            optimizer.step()
            schedule.step()
    return policy, reference, rewards


def best(reference: Bigrams, rewards: dict[tuple[int, ...], float], beta: float) -> Tensor:
    """log pi* of each answer."""
    scores = torch.stack([reference.log_p(y).detach() + r / beta for y, r in rewards.items()])
    return scores.log_softmax(0)


def gap(policy: Bigrams, target: Tensor, answers) -> float:
    """KL(pi || target), exactly."""
    log_p = torch.stack([policy.log_p(y) for y in answers]).detach()
    return float((log_p.exp() * (log_p - target)).sum())
