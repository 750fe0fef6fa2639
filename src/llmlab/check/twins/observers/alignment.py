"""Observer of alignment methods: the samples that they prepare, their loss with its gradient, and what they make of a rollout.

Inputs:
- `vocabulary` (its size), `seq_len`, and records as record/N/FIELD, of a list record/N/FIELD/I. A prompt of a method that
  learns from its answers together has all of them in its record. `roles` of chat are numbers of ROLES, `other` is another
  record's answer, `windows` has the window of each record.
- `batch/KEY`, of which `batch/scores/ROLE` are the scores of each head for all tokens (B, T, V), or of `row_ids` for the
  tokens of all rows that there are; of a companion's head ROLE is COMPANION.HEAD.
- Of a method that acts: `rollout/KEY`, the fields of `llmlab.slots.Answers`, and what `measure` would give as
  `rollout/measured/NAME`; `chosen`, the numbers of the answers that are learnt from; `tokens/N`, prompt and answer of each;
  `measured/KEY`, the batch that `measure` is given, with scores as above.

Outputs:
- Of all records one after another: `prepared/KEY`; `sizes` of these arrays, by key in alphabetical order; `n_targets/TERM`;
  `passes`, of each pass its tokens, 1 for that of the model itself, 1 if trained, times, and the tokens of each head.
- `batch/loss/TERM` and `batch/log/NAME` (sum, count), `batch/weight/TERM`, `batch/mean`, and its gradient by the scores of
  each head, `batch/slope/ROLE`; `half/mean` of scores rounded to bfloat16. With companions `batch/read/MODEL`, the ids that
  each reads.
- `scored/...`, the same but for slopes and ids, of preferences whose answers have `scores/N`, some of which are equal, and
  `scored/row_scores`, of each of their tokens.
- Of a method that acts: `rollout`, (samples, max_new, temperature, batches, epochs, resample); `measured/NAME`; `credit/NAME`;
  `one/NAME`, of the first prompt's answers alone; `none/NAME`, the loss of a validation. Of one that has a state `state/NAME`
  behind the rollout, and `again/advantage`, of the rollout once more with that state.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch

from llmlab import attributes
from llmlab.check.restoring.batches import ROWS, SEQ_LEN, SIZE, Batch
from llmlab.check.twins.observers import texts
from llmlab.check.twins.observers.observed import Observed, arrays, options_of, sizes_of, uniform
from llmlab.check.twins.observers.scored import ScoredModel, companions_of, flat, losses, scores_of
from llmlab.check.twins.settings import Setting
from llmlab.data import collate, stand_in
from llmlab.slots import Acts, Answers, Objective, Rollout
from llmlab.twins import Given

ROLES = ("system", "user", "assistant")
N_PROMPTS = 4
Sample = dict[str, Any]


def observe(setting: Setting) -> Observed:
    method = texts.made(setting, SIZE, SEQ_LEN)
    inputs: dict[str, np.ndarray] = {"vocabulary": np.array(SIZE), "seq_len": np.array(SEQ_LEN)}
    outputs: dict[str, np.ndarray] = {}
    acts = getattr(method, "rollout", None) is not None
    if acts and attributes.get(method, "objective", "together"):
        windows, outputs = _rollout_together(cast(Acts, method))
    elif acts:
        windows, outputs = _rollout(setting, inputs)
    else:
        windows = RECORDS.get(attributes.get(method, "objective", "reads"), _any)(method)
    packed = attributes.get(method, "objective", "collate") == "pack"
    for i, sample in enumerate(sample for window in windows for sample in window):
        known = {k: v for k, v in sample.items() if k not in ("rest", "other")}
        if "roles" in known:
            known["roles"] = np.array([ROLES.index(role) for role in known["roles"]])
        if "other" in sample:
            known["other"] = sample["other"]["answer"]
        inputs |= flat(f"record/{i}", known)
    inputs["windows"] = np.repeat(np.arange(len(windows)), [len(window) for window in windows])
    every = [collate.prepare(method, window if packed else window[0], np.random.default_rng(0)) for window in windows]
    outputs |= _prepared(method, every)
    batch = stand_in.collated(method, [p for p, window in zip(every, windows, strict=True) if _learnt(window)], SEQ_LEN)
    batches = {"batch": batch}
    if acts:
        batches["none"] = _judged(method)
    if attributes.get(method, "objective", "reads") == "preferences":
        scored = _scored(method, windows)
        if "row_scores" in scored:  # a method of one's own need not read them
            inputs |= {f"scores/{i}": np.array(scores) for i, scores in enumerate(SCORES)}
            batches["scored"] = scored
            outputs["scored/row_scores"] = scored["row_scores"].numpy()
    for name, each in batches.items():
        inputs |= {f"{name}/{key}": value for key, value in arrays(each).items()}
        scores = scores_of(setting, name, each)
        inputs |= {f"{name}/scores/{role}": value for role, value in arrays(scores).items()}
        found = losses(method, each, scores)
        outputs |= {f"{name}/{key}": value for key, value in found.items() if name != "scored" or _of_pairs(key)}
        if name == "batch":
            half = {role: value.bfloat16() for role, value in scores.items()}
            outputs["half/mean"] = losses(method, each, half)["mean"]
    return Observed(Given(options_of(setting), sizes_of(setting), inputs, {}), outputs)


def _of_pairs(key: str) -> bool:
    """True of what tells the pairs that are taken; slopes and what a model reads are told by `batch`."""
    return not key.startswith(("slope/", "read/"))


def _judged(method: Objective) -> Batch:
    """Rewards and lengths of greedy answers; of no answer where nothing judges them, as a rank without a prompt has."""
    n = ROWS if attributes.get(method, "objective", "judged") else 0
    return {"reward": uniform("judged", n), "answer_length": 1 + torch.arange(n) * 2}


def _learnt(window: Sequence[Sample]) -> bool:
    """False of a prompt without an answer, as `llmlab plan` has it."""
    return window[0].keys() != {"prompt", "rest"}


def _prepared(method: Objective, every: Sequence[Sample]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    sizes: list[int] = []
    for key in sorted(every[0]):
        each = [np.asarray(v) for p in every for v in (p[key] if isinstance(p[key], list) else [p[key]])]
        found[f"prepared/{key}"] = np.concatenate([v.reshape(-1) for v in each]).astype(np.float64)
        sizes += [v.size for v in each]
    found["sizes"] = np.array(sizes)
    targets = [method.targets(p) for p in every]
    found |= {f"n_targets/{term}": np.array([of[term] for of in targets]) for term in targets[0]}
    if (passes := getattr(method, "passes", None)) is not None:
        costs = [
            [p.tokens, p.model == "model", p.trained, p.times, *(n or 0 for n in p.heads.values())]
            for prepared in every
            for p in passes(prepared)
        ]
        found["passes"] = np.concatenate([np.array(cost, np.float64) for cost in costs])
    return found


# ---------------------------------------------------------------- records


def _tokens(n: int, number: int) -> np.ndarray:
    """n tokens; others for each number."""
    return np.random.default_rng(number).integers(SIZE, size=n)


def _any(method: Objective) -> list[list[Sample]]:
    return [[stand_in.sample(method, _tokens(SEQ_LEN + 1 - i, i), i)] for i in range(3)]


def _chat(method: Objective) -> list[list[Sample]]:
    lengths = {"system": 2, "user": 3, "assistant": 4}

    def made(number: int, *roles: str) -> Sample:
        messages = [_tokens(lengths[role] - i % 2, number + i) for i, role in enumerate(roles)]
        return {"messages": messages, "roles": list(roles)}

    return [
        [made(1, "system", "user", "assistant", "user", "assistant"), made(2, "user", "assistant")],
        [made(3, "assistant", "user", "assistant", "user")],
    ]


def _preferences(method: Objective) -> list[list[Sample]]:
    lengths = ((3, 1, 4), (2, 5), (2, 2), (1, 3, 2, 4))
    return [
        [{"prompt": _tokens(2 + i % 2, i), "answers": [_tokens(n, i + 2 * j + 1) for j, n in enumerate(each)]}]
        for i, each in enumerate(lengths)
    ]


# Of the answers of each record of preferences, the best first; two are equal.
SCORES = ((2.5, 1.0, 1.0), (0.5, -1.0), (3.0, 3.0), (4.0, 2.0, 2.0, 1.5))


def _scored(method: Objective, windows: Sequence[Sequence[Sample]]) -> Batch:
    every = [{**window[0], "scores": np.array(scores)} for window, scores in zip(windows, SCORES, strict=True)]
    return stand_in.collated(method, [method.prepare(s, np.random.default_rng(0)) for s in every], SEQ_LEN)


def _rated(method: Objective) -> list[list[Sample]]:
    # Numbers at which kto's point is above 0 by answers to other prompts, and would be below by their own.
    made = [
        {"prompt": _tokens(2 + i, 1400 + i), "answer": _tokens(n, 1401 + i), "good": np.int64(good)}
        for i, (n, good) in enumerate(((3, 1), (1, 0), (5, 1), (2, 0)))
    ]
    # The last has no other, as in a corpus of one record; the third's is too long for some prompts.
    return [[{**one, "other": other}] for one, other in itertools.pairwise(made)] + [[made[-1]]]


RECORDS: Mapping[str, Callable[[Objective], list[list[Sample]]]] = {
    "chat": _chat,
    "preferences": _preferences,
    "rated": _rated,
}


# ---------------------------------------------------------------- rollouts


def _rollout(setting: Setting, inputs: dict[str, np.ndarray]) -> tuple[list[list[Sample]], dict[str, np.ndarray]]:
    """(samples with what they are credited with, outputs)."""
    method = cast(Acts, texts.made(setting, SIZE, SEQ_LEN))
    how = method.rollout
    outputs = {"rollout": _rolls_out(how)}
    n = N_PROMPTS * how.samples
    lengths = np.minimum(1 + (3 * np.arange(n) + 1) % 5, how.max_new)
    lengths[-1] = how.max_new
    there = np.arange(how.max_new) < lengths[:, None]
    drawn = uniform("drawn", n, how.max_new).double().numpy() - 2.2
    drawn[0] -= 1.5  # an advantage above 0 is to meet ratios beyond either bound
    drawn = np.where(there, drawn, 0.0)
    truncated = np.arange(n) % 3 == 1
    rewards = _rewards(how.samples)
    # Some of different prompts; not the last, which may be long.
    chosen = np.array([0, 1, 2] if how.samples == 1 else [0, 1, 2 * how.samples, 3 * how.samples])
    samples = [
        {
            "prompt": _tokens(2 + row % 3, number),
            "answer": _tokens(lengths[row], number + 1),
            "log_probabilities": drawn[row, : lengths[row]],
            "reward": rewards[row],
            "truncated": float(truncated[row]),
            **({"resampled": float(number)} if how.resample else {}),
        }
        for number, row in enumerate(chosen)
    ]
    measured: dict[str, np.ndarray] = {}
    if getattr(method, "measure", None) is not None:
        given, found = _measured(setting, method, samples)
        inputs |= given
        outputs |= {f"measured/{name}": value for name, value in found.items()}
        for name, value in found.items():
            own = uniform(f"measured {name}", n, how.max_new).double().numpy()
            measured[name] = np.where(there, own - 1.5, 0.0) if value.ndim > 1 else own[:, 0] + 1.2
    answers = Answers(rewards, lengths, truncated, drawn, measured, how.samples)
    fields = {k: v for k, v in answers._asdict().items() if k not in ("measured", "samples")}
    inputs |= {f"rollout/{key}": value for key, value in fields.items()}
    inputs |= {f"rollout/measured/{name}": value for name, value in measured.items()} | {"chosen": chosen}
    credit = method.credit(answers)
    outputs |= {f"credit/{name}": np.asarray(value) for name, value in credit.items()}
    # A rollout of one prompt, by a method that has not been asked yet.
    k = how.samples
    few = {name: value[:k] for name, value in measured.items()}
    one = Answers(rewards[:k], lengths[:k], truncated[:k], drawn[:k], few, k)
    fresh = cast(Acts, texts.made(setting, SIZE, SEQ_LEN)).credit(one)
    outputs |= {f"one/{name}": np.asarray(value) for name, value in fresh.items()}
    if (state := getattr(method, "state", None)) is not None:
        outputs |= {f"state/{name}": np.array(value) for name, value in state().items()}
        again = cast(Any, texts.made(setting, SIZE, SEQ_LEN))
        again.load(state())
        outputs["again/advantage"] = again.credit(answers)["advantage"]
    windows: list[list[Sample]] = []
    for row, sample in zip(chosen, samples, strict=True):
        credited = {
            name: value[row, : lengths[row]] if np.ndim(value) > 1 else value[row] for name, value in credit.items()
        }
        windows.append([{**sample, **credited}])
    return [*windows, [{"prompt": samples[0]["prompt"], "rest": {}}]], outputs


def _rollout_together(method: Acts) -> tuple[list[list[Sample]], dict[str, np.ndarray]]:
    """(samples, each a prompt with all answers to it; outputs)."""
    how = method.rollout
    k = how.samples
    spread = 2 * uniform("rewards", k).double().numpy()
    equal, best = _rewards(k).reshape(N_PROMPTS, k)[1:3]
    # What isn't learnt if answers must have an end: the best of the first prompt, and all of the third.
    groups = [
        (spread, spread == spread.max()),
        (equal, np.zeros(k)),
        (3 + spread, np.ones(k)),
        (best, np.zeros(k)),
        (2 + 1e-3 * spread, np.zeros(k)),  # two answers are alike
        (30 * spread, np.zeros(k)),
    ]
    samples: list[Sample] = []
    for number, (rewards, truncated) in enumerate(groups):
        lengths = [1 + (3 * i + number) % 5 for i in range(k)]
        answers = [_tokens(n, 10 * number + i) for i, n in enumerate(lengths)]
        drawn = [uniform(f"drawn {number} {i}", n).double().numpy() - 2.2 for i, n in enumerate(lengths)]
        if number == 4:
            answers[1], drawn[1] = answers[0], drawn[0]
        prompt = _tokens(2 + number % 3, number)
        found = {"answers": answers, "log_probabilities": drawn, "reward": rewards}
        samples.append({"prompt": prompt, **found, "truncated": np.asarray(truncated, np.float64)})
    rewards = np.concatenate([each["reward"] for each in samples])
    every = np.array([len(answer) for each in samples for answer in each["answers"]])
    told = Answers(rewards, every, np.zeros(rewards.size, bool), np.zeros((rewards.size, 5)), {}, k)
    outputs = {"rollout": _rolls_out(how)}
    outputs |= {f"credit/{name}": np.asarray(value) for name, value in method.credit(told).items()}
    return [*([each] for each in samples), [{"prompt": samples[0]["prompt"], "rest": {}}]], outputs


def _rolls_out(how: Rollout) -> np.ndarray:
    return np.array([how.samples, how.max_new, how.temperature, how.batches, how.epochs, how.resample])


def _rewards(samples: int) -> np.ndarray:
    """(prompts x samples,): rewards that differ, that are equal but for rounding, of which one is not 0, and that are close."""
    a, b = np.float32(0.1), np.float32(0.2)
    groups = [
        2 * uniform("rewards", samples).double().numpy(),
        np.where(np.arange(samples) % 2, float(a + b), float(np.float32(0.3))),
        np.where(np.arange(samples) == 0, -1.0, 0.0),
        2 + 1e-3 * uniform("close rewards", samples).double().numpy(),
    ]
    return np.concatenate(groups)


def _measured(
    setting: Setting, method: Any, samples: Sequence[Sample]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(inputs, outputs) of `measure`."""
    prepared = [method.prepare(sample, np.random.default_rng(0)) for sample in samples]
    batch: Batch = stand_in.collated(method, prepared, SEQ_LEN)
    scores = scores_of(setting, "measured", batch)
    inputs = {f"measured/{key}": value for key, value in arrays(batch).items()}
    inputs |= {f"measured/scores/{role}": value for role, value in arrays(scores).items()}
    own, others = companions_of(method, scores)
    hidden = torch.zeros(SIZE, 1)
    models = {role: ScoredModel(heads, hidden, batch["ids"]) for role, heads in others.items()}
    found = method.measure(ScoredModel(own, hidden, batch["ids"]), batch, **models)
    return inputs, arrays(found)
