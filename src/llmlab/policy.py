"""Log-probabilities of answers that the model has written itself: what methods that act learn from.

B answers, T tokens, n answer tokens of the batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmlab.errors import UserError
from llmlab.objectives import Loss, Pass, Rollout
from llmlab.values import IGNORED as IGNORED
from llmlab.values import Output

# Mean difference of two log-probabilities that the order of sums explains, by the type of the logits, for a cached step and a
# whole forward take other kernels. Measured: up to 3e-6 in float32, 0.03 in bfloat16. The mean and not the largest, as a
# router may send a token to another expert where two are as good as equal, which in bfloat16 moved one token in 500 by 2.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}
COARSE = 0.1

# Rewards are kept in float32: sums of weighted rules that differ by their order alone are equal.
EQUAL = 4 * float(np.finfo(np.float32).eps)


class Recomputed(NamedTuple):
    """`now` and `then` (n,) are log-probabilities under the model and in the rollout; `rows` (n,) the answers of the tokens,
    which `where` (B, T) bool tells; `log_p` (n, V) those of all tokens that could have come."""

    now: Tensor
    then: Tensor
    rows: Tensor
    output: Output
    log_p: Tensor
    where: Tensor


def prepared(
    sample: Mapping[str, Any], max_new: int, of_answers: Sequence[str] = ("reward",), of_tokens: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """An answer with its prompt as the model reads both: ids, labels (-100 at the prompt) and log_probabilities (T,), each
    of the token that comes next; answer_length (), and advantage, of the answer () or of its tokens (T,).

    of_answers, of_tokens: what else of the sample is given on, numbers (), or (T,) with a value for each token of the answer.
    A prompt that has no answer yet, of which a plan asks, is taken to get one of `max_new` tokens.
    """
    prompt = np.asarray(sample["prompt"], np.int64)
    answer = np.asarray(sample.get("answer", np.zeros(max_new)), np.int64)
    text, given = np.concatenate([prompt, answer]), len(prompt) - 1
    nothing = np.zeros(len(answer))

    def of_each(values: Any) -> np.ndarray:
        return np.concatenate([np.zeros(given, np.float32), np.asarray(values, np.float32)])

    advantage = np.asarray(sample.get("advantage", 0.0), np.float32)
    return {
        "ids": text[:-1],
        # One shorter than the text: each label is the token that comes next.
        "labels": np.concatenate([np.full(given, IGNORED), answer]),
        "log_probabilities": of_each(sample.get("log_probabilities", nothing)),
        "advantage": of_each(advantage) if advantage.ndim else advantage,
        **{name: of_each(sample.get(name, nothing)) for name in of_tokens},
        **{name: np.asarray(sample.get(name, 0.0), np.float32) for name in of_answers},
        "answer_length": np.asarray(len(answer), np.int64),
    }


def without_spread(rewards_PS: np.ndarray) -> np.ndarray:
    """(P,) bool: all answers to the prompt have the same reward, but for rounding."""
    spread = rewards_PS.max(1) - rewards_PS.min(1)
    return np.asarray(spread <= EQUAL * np.abs(rewards_PS).max(1))


def answered(sample: Mapping[str, Any], rollout: Rollout) -> dict[str, Any]:
    """A prompt with all answers to it, a list of them under "answers". One that has none yet, of which a plan asks, is taken to
    get answers of `max_new` tokens that are worth nothing."""
    n = rollout.samples
    nothing = {"answers": [np.zeros(rollout.max_new, np.int64)] * n, "reward": [0.0] * n, "truncated": [0.0] * n}
    drawn = {"log_probabilities": [np.zeros(rollout.max_new)] * n}
    return {**nothing, **drawn, **sample}


def generation(prepared: Mapping[str, Any], rollout: Rollout, together: bool = False) -> Pass:
    """The cost of the generation of a sample's answers to a step that trains on it: token by token with a cache it is that of
    one forward, and serves as many steps as there are epochs. together: a sample has all answers to a prompt."""
    ids, labels = (
        prepared[f"row_{name}"][0] if f"row_{name}" in prepared else prepared[name] for name in ("ids", "labels")
    )
    # At most as often as prompts may be drawn again.
    times = (rollout.samples if together else 1) * (1 + rollout.resample) / rollout.epochs
    return Pass(len(ids), trained=False, heads={"tokens": int((labels != IGNORED).sum())}, times=times)


def greedy(batch: Mapping[str, Tensor], term: str) -> Loss | None:
    """The loss of a validation, whose batches have the rewards of greedy answers alone: their negative mean, as the term."""
    if "ids" in batch or "row_ids" in batch:
        return None
    reward = batch["reward"].float()
    count = reward.new_tensor(len(reward))
    logs = {"reward": (reward.sum(), count), "answer_length": (batch["answer_length"].float().sum(), count)}
    return Loss({term: (-reward.sum(), count)}, logs=logs)


def log_probabilities(
    model: Any,
    batch: Mapping[str, Tensor],
    *,
    temperature: float,
    vocabulary: int,
    writer: bool = True,
    more: Sequence[str] = (),
) -> Recomputed:
    """Log-probabilities of the answers' tokens in a batch of `prepared` samples, at the temperature of their rollout.

    writer: the model is the one that wrote the answers, or has learnt from them since; a reference is not. UserError where the
    batch is `fresh`, so that the writer has not learnt yet, and they are not equal: a method would take for learning what is a
    difference between two ways to compute. more: roles of other heads that are computed for the same tokens.
    """
    where = batch["labels"] != IGNORED
    read = {name: batch[name] for name in ("ids", "valid") if name in batch}
    output = model(read, heads=dict.fromkeys(("tokens", *more), where))
    logits = output.heads["tokens"]
    # Rows of the table that only round it up are never drawn, so they have no probability here either.
    # In float32: in bfloat16 a log-probability over 1,024 logits is off by 0.01 on average.
    scores = logits[:, :vocabulary].float() / temperature
    log_p = scores.log_softmax(-1)
    now = log_p.gather(-1, batch["labels"][where][:, None])[:, 0]
    then = batch["log_probabilities"][where]
    if writer and "fresh" in batch and bool(batch["fresh"]):
        _equal(now.detach(), then, logits.dtype, model.spec.family)
    # A mask flattens row by row, and so do the log-probabilities.
    rows = torch.arange(len(where), device=where.device)[:, None].expand_as(where)[where]
    return Recomputed(now, then, rows, output, log_p, where)


def there(lengths_N: np.ndarray, longest: int) -> np.ndarray:
    """(N, longest) bool: an answer has a token there."""
    return np.arange(longest) < lengths_N[:, None]


def entropies(log_p: Tensor) -> Tensor:
    """(n,), nats, of (n, V)."""
    log_p = log_p.detach()
    return -(log_p.exp() * log_p).sum(-1)


def exact_kl(log_p: Tensor, of_reference: Tensor) -> Tensor:
    """(n,): KL(policy || reference) of the next token, over all that could come; of (n, V).

    Summed over an answer that the policy drew it is an unbiased estimate of that of whole answers, of less variance than the
    difference of their log-probabilities, and never negative (by the chain rule of the KL).
    """
    log_p = log_p.detach()
    return (log_p.exp() * (log_p - of_reference.detach())).sum(-1)


def _equal(now: Tensor, then: Tensor, dtype: torch.dtype, family: str) -> None:
    gap, most = (now - then).abs().mean().item(), TOLERANCE.get(dtype, COARSE)
    # Not `gap > most`: of a NaN both are false.
    if not gap <= most:
        raise UserError(
            f"the log-probabilities of answers differ by {gap:.3g} on average between their rollout and training (at most "
            f"{most:g} in {str(dtype).removeprefix('torch.')}): a part of this model computes otherwise with a cache or "
            f"padding than without; llmlab check model={family}, with the parts that were typed, tells which"
        )
