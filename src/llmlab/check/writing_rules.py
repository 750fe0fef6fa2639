"""The rules of sampling and of unmasking, written out over a vocabulary of a few tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmlab.check.subject import CheckFailed
from llmlab.decoding.sampling import Sampling
from llmlab.decoding.unmasking import Unmasking
from llmlab.errors import UserError

NAN, INF = math.nan, math.inf
# Of each rule: values that it is asked with, and values that must be refused.
VALUES: Mapping[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "temperature": ((0.0, 0.5, 1.0, 2.0, 1e-50), (-0.1, NAN)),
    "top_k": ((None, 1, 2, 5, 6, 9), (0, -1)),
    "top_p": ((None, 0.3, 0.6, 0.95, 1.0), (0.0, 1.1, NAN)),
    "min_p": ((None, 0.0, 0.15, 0.5, 1.0), (-0.1, 1.1, NAN)),
    "repetition_penalty": ((1.0, 0.6, 1.7), (0.0, -1.0, INF, NAN)),
}
N_RULES, N_DRAWS = 40, 1500
# Rows differ in order and sign; the last has equal logits, of which any may be taken.
LOGITS = (
    (1.3, -0.4, 0.9, -2.0, 0.2, 2.1),
    (-3.0, -0.5, -1.1, -0.2, -4.0, -0.9),
    (0.0, 0.7, 3.5, 0.1, -1.0, 3.1),
    (0.5, 0.5, 0.5, -1.0, 0.5, 0.5),
)
SEEN: Sequence[set[int]] = ({0, 3}, {2, 3, 5}, set(), set())


def distribution(logits: Sequence[float], rules: Sampling, seen: set[int]) -> dict[int, float]:
    """Probabilities of the tokens that may come, rule after rule as `Sampling` names them."""
    factor = rules.repetition_penalty
    z = [x if i not in seen else x / factor if x > 0 else x * factor for i, x in enumerate(logits)]
    order = sorted(range(len(z)), key=lambda i: -z[i])
    if rules.temperature == 0:
        return {order[0]: 1.0}
    chance = _whole({i: math.exp((z[i] - z[order[0]]) / rules.temperature) for i in order[: rules.top_k]})
    if rules.top_p is not None:
        kept: dict[int, float] = {}
        for i, p in chance.items():
            if sum(kept.values()) < rules.top_p:
                kept[i] = p
        chance = _whole(kept)
    if rules.min_p is not None:
        least = rules.min_p * max(chance.values())
        chance = _whole({i: p for i, p in chance.items() if p >= least})
    return chance


def _whole(chance: dict[int, float]) -> dict[int, float]:
    total = sum(chance.values())
    return {i: p / total for i, p in chance.items()}


def require_rules() -> None:
    """CheckFailed unless tokens are drawn, and positions unmasked, by the rules; and what is no rule is refused."""
    chance = np.random.default_rng(0)
    logits = torch.tensor(LOGITS)
    seen = torch.tensor([[i in row for i in range(logits.shape[1])] for row in SEEN])
    for _ in range(N_RULES):
        rules = Sampling(**{name: values[chance.integers(len(values))] for name, (values, _) in VALUES.items()})
        _distribution_is(rules, logits, seen)
    for name, (_, wrong) in VALUES.items():
        for value in wrong:
            require_refusal(partial(Sampling, **{name: value}), name, f"{name}={value}")
    for rules in (Sampling(0.8, top_k=4), Sampling(1.5, top_p=0.9, repetition_penalty=1.7), Sampling(0)):
        _draws(rules, logits, seen)
    _plans()


def require_refusal(ask: Callable[[], Any], word: str, what: str) -> None:
    """CheckFailed unless it raises a UserError that has the word."""
    try:
        ask()
    except UserError as e:
        if word not in str(e):
            raise CheckFailed(f"{what} is refused without a word of {word}: {e}") from e
    else:
        raise CheckFailed(f"{what} is not refused")


def _distribution_is(rules: Sampling, logits: Tensor, seen: Tensor) -> None:
    found = rules.distribution(logits.bfloat16(), seen)  # of any type of logits in float32
    if found.dtype != torch.float32 or found.shape != logits.shape:
        raise CheckFailed(f"probabilities are {found.dtype} {tuple(found.shape)}, of logits {tuple(logits.shape)}")
    for row, (scores, p, of) in enumerate(zip(logits.bfloat16().tolist(), found.tolist(), SEEN, strict=True)):
        by_rules = distribution(scores, rules, of)
        want = [by_rules.get(i, 0.0) for i in range(len(p))]
        if row == len(LOGITS) - 1 and rules.temperature:
            p, want = sorted(p), sorted(want)
        if not np.allclose(p, want, rtol=0, atol=1e-5):
            raise CheckFailed(f"by {rules} the logits {scores} have the probabilities {p}, but {want} by the rules")
    token = found.argmax(-1)
    told = rules.log_probability(logits.bfloat16(), token, seen)
    if not torch.allclose(told, found.amax(-1).log(), atol=1e-5):
        raise CheckFailed(f"by {rules} tokens of the probabilities {found.amax(-1)} have the logarithms {told}")


def _draws(rules: Sampling, logits: Tensor, seen: Tensor) -> None:
    """As often as is likely, by one generator or one a row; -1 where there is no distribution."""
    p = rules.distribution(logits[:3], seen[:3])
    rows = torch.arange(3).repeat(N_DRAWS)
    drawn = rules.draw(logits[rows], torch.Generator().manual_seed(0), seen[rows])
    often = torch.zeros_like(p).index_put_((rows, drawn), torch.ones(len(rows)), accumulate=True) / N_DRAWS
    # Five deviations of a share of so many draws.
    if ((often - p).abs() > 5 * (p * (1 - p) / N_DRAWS).sqrt() + 1e-6).any():
        raise CheckFailed(
            f"by {rules} tokens of the probabilities {p.tolist()} are drawn in shares of {often.tolist()}"
        )

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in range(3)]

    together = rules.draw(logits[:3], generators(), seen[:3])
    for i, own in enumerate(generators()):
        alone = rules.draw(logits[i : i + 1], own, seen[i : i + 1])
        if alone[0] != together[i]:
            raise CheckFailed(f"by {rules} a row draws {together[i]} beside others, and {alone[0]} alone")
    broken = logits[:3].clone()
    broken[0, 2], broken[1, 4] = NAN, INF
    found = rules.draw(broken, generators(), seen[:3])
    if found.tolist() != [-1, -1, int(together[2])]:
        raise CheckFailed(f"by {rules} rows with a NaN, an infinity and neither draw {found.tolist()}")


def _plans() -> None:
    """A block after the other, its tokens dealt out evenly over its share of the steps, the first steps first."""
    for name in ("steps", "block"):
        require_refusal(partial(Unmasking, 0, **{name: 0}), name, f"{name}=0")
    for room in range(1, 9):
        for block in (None, 1, 3, 4, 9):
            for steps in (None, 1, 2, 5, 8, 20):
                got, want = Unmasking(0, steps=steps, block=block).plan(room), list[tuple[int, int]]()
                for begin in range(0, room, block or room):
                    end = min(begin + (block or room), room)
                    times = min(max(round(min(steps or room, room) * (end - begin) / room), 1), end - begin)
                    dealt = [sum(1 for token in range(end - begin) if token % times == i) for i in range(times)]
                    want += [(n, end) for n in dealt]
                if got != want:
                    raise CheckFailed(
                        f"{room} tokens in blocks of {block} and {steps} steps are unmasked by {got}, but {want} by the rule"
                    )
