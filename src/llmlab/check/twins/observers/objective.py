"""Observer of objectives: the samples that they prepare, and their loss with its gradient.

Inputs:
- `vocabulary` (its size), `counts` (of each id in the training text), `near` (V, V: how often two ids are near each other
  there at a window of 1; times the window at another), `special/NAME` (ids of special tokens) and `draws` (how
  often each text is prepared). Of an objective that `restores` something: `words/continues` and `words/open` of
  `llmlab.slots.Words`.
- Of an objective that `restores` something: texts as TEXT/tokens, TEXT/given, TEXT/documents and TEXT/other. Of one that
  reads text and restores nothing: `rows`, the tokens that `batch` was prepared from. Of one that reads records:
  record/N/FIELD, of a list record/N/FIELD/I.
- Batches: `batch/KEY`; `none/KEY`, one without targets, or of a validation where the objective acts; and `weighed/KEY`, of
  labelled records with a confidence. `BATCH/scores/ROLE`: scores of each head for all tokens or texts. `hidden` (V, D): the
  hidden state of each id; `hidden/ROLE`: that of a companion; layer i of 4, counted from 0, has for an id the row i - 4
  behind it. `head` (D, V): by which the heads alone read hidden states; `project` (D, D): by which a head that reads layers
  does.
- Of an objective that acts: `rewards/SHAPE`.

Outputs:
- Of texts what `llmlab.check.restoring` says of all that the objective `restores`; of a record `prepared/KEY/N`, of a list
  `prepared/KEY/N/I`, `n_targets/TERM/N`, `passes/N`.
- Of each BATCH, under `BATCH/`: `loss/TERM` and `log/NAME` (sum, count), `weight/TERM`, `mean`, and its gradient by the scores
  of each head, `slope/ROLE`. Where it works with companions `read/MODEL`, the ids that each model reads.
- `half/mean`: the mean of `batch` whose scores are rounded to bfloat16, as a model gives them in mixed precision.
- `best/first`, `best/last`, `best/score`, `best/none`, of `batch`, where it looks for spans.
- `prefix_len`, where a mixture has one, of each row of its batch.
- `shares/ROLE` of a companion that trains: 1 if it has the model's table of tokens, its table of positions, and if the model
  has a delta of its own beside the former.
- `shortest`, the shortest window that it takes, where that is longer than a token.
- The attributes `shown` and `fixed_counts`; `repeats` and `stride`, where there is one; of an objective that acts `rollout`
  (samples, max_new, temperature, batches, epochs, steps) and `advantages/SHAPE`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from llmlab import attributes, registry
from llmlab.check import restoring
from llmlab.check.restoring.batches import SEQ_LEN, SIZE, Batch, rows
from llmlab.check.twins.observers import texts
from llmlab.check.twins.observers.observed import Observed, arrays, options_of, sizes_of, uniform
from llmlab.check.twins.observers.scored import (
    ScoredModel,
    flat,
    head_weight,
    hidden_states,
    losses,
    projection,
    scores_of,
)
from llmlab.check.twins.settings import Setting
from llmlab.data import stand_in
from llmlab.objective_attributes import Companion
from llmlab.record_kinds import TEXT
from llmlab.slots import Acts, Answers, Objective
from llmlab.twins import Given


def observe(setting: Setting) -> Observed:
    inputs: dict[str, np.ndarray] = {
        "vocabulary": np.array(texts.vocabulary(setting).size),
        "counts": texts.counts(texts.vocabulary(setting).size),
        "near": texts.near(*np.indices((texts.SIZE, texts.SIZE))),
        "hidden": hidden_states().numpy(),
        "head": head_weight().numpy(),
        "project": projection().numpy(),
    }
    companions = registry.declared(setting.slot, setting.name, options_of(setting)).attribute("models")
    inputs |= {f"hidden/{role}": hidden_states(role).numpy() for role in companions}
    special = texts.vocabulary(setting).special
    longer = texts.made(setting, texts.SIZE, 40)
    kind = restoring.of_any(longer)
    inputs["draws"] = np.array(texts.N_DRAWS if kind is None else kind.draws)
    inputs |= {f"special/{name}": np.array(at) for name, at in special.items()}
    outputs = {f"shares/{role}": _shares(model) for role, model in companions.items() if model.get("trains")}
    if kind is not None:
        inputs |= {f"words/{key}": value for key, value in texts.WORDS._asdict().items()}
        for name, text in kind.tried_on(longer).items():
            inputs |= {f"{name}/{key}": value for key, value in text._asdict().items() if value is not None}
            objective = texts.made(setting, texts.SIZE, len(text.tokens) - 1)
            outputs |= kind.observe(objective, texts.draws(objective, text, kind.draws), name, text, special)
    objective = texts.made(setting, SIZE, SEQ_LEN)
    if kind is None and attributes.get(objective, "objective", "reads") == TEXT:
        inputs["rows"] = rows()
    for name in ("shown", "fixed_counts"):
        outputs[name] = np.array(float(attributes.get(objective, "objective", name)))
    if (shortest := _shortest(setting)) > 1:
        outputs["shortest"] = np.array(shortest)
    for name in ("repeats", "stride"):
        if (number := getattr(objective, name, None)) is not None:
            outputs[name] = np.array(number)
    if attributes.get(objective, "objective", "reads") != TEXT:
        given, prepared = _records(objective)
        inputs, outputs = inputs | given, outputs | prepared
    outputs |= _rollout(objective, inputs)
    for name, batch in _batches(objective).items():
        inputs |= {f"{name}/{key}": value for key, value in arrays(batch).items()}
        scores = scores_of(setting, name, batch)
        inputs |= {f"{name}/scores/{role}": value for role, value in arrays(scores).items()}
        outputs |= {f"{name}/{key}": value for key, value in losses(objective, batch, scores).items()}
        if "which" in batch and "prefix_len" in batch:
            outputs["prefix_len"] = batch["prefix_len"].numpy()
        if name == "batch":
            half = {role: value.bfloat16() for role, value in scores.items()}
            outputs["half/mean"] = losses(objective, batch, half)["mean"]
            outputs |= _best(objective, batch, scores)
    return Observed(Given(options_of(setting), sizes_of(setting), inputs, {}), outputs)


def _shares(companion: Companion) -> np.ndarray:
    """(token table, table of positions, a delta of its own beside the table), 1 where it is so."""
    shares = companion.get("shares", ())
    return np.array(["embedding" in shares, "position" in shares, companion.get("delta", False)], np.float64)


def _shortest(setting: Setting) -> int:
    for length in range(1, SIZE):
        with suppress(ValueError):
            texts.made(setting, texts.SIZE, length)
            break
    return length


# ---------------------------------------------------------------- records


def _samples(objective: Objective) -> list[dict[str, Any]]:
    """Records of unequal lengths."""
    made = []
    for i, length in enumerate((SEQ_LEN, SEQ_LEN - 1, SEQ_LEN - 3)):
        tokens = (np.arange(length + 1) * (i + 2) + 1) % SIZE
        sample = stand_in.sample(objective, tokens, i)
        if "log_probabilities" in sample:
            then = uniform(f"then {i}", len(sample["answer"])).numpy() - 2
            sample |= {"log_probabilities": then, "advantage": 0.75 - i, "reward": (1.0, 0.25, -0.5)[i]}
        made.append(sample)
    return made


def _records(objective: Objective) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(inputs, outputs): fields of records, the last with others than those of a batch, and what is prepared of them."""
    first, *others = _samples(objective)
    kinds = [first, *others]
    if "rows" in first:
        kinds.append({**first, "row_segments": [np.arange(len(row)) % 2 for row in first["rows"]]})
    elif "tokens" in first:
        kinds.append({**first, "segments": np.arange(len(first["tokens"])) % 2})
    if "label" in first:
        kinds[-1]["confidence"] = np.float32(0.25)
    if "span" in first:
        kinds.append({**first, "span": np.full(2, -1)})  # it was cut away
    if "prompt" in first:
        kinds.append({"prompt": first["prompt"], "rest": {}})  # as `llmlab plan` has it, before there are answers
    inputs: dict[str, np.ndarray] = {}
    outputs: dict[str, np.ndarray] = {}
    for i, sample in enumerate(kinds):
        inputs |= flat(f"record/{i}", {k: v for k, v in sample.items() if k != "rest"})
        prepared = objective.prepare(sample, np.random.default_rng(0))
        for key, value in prepared.items():
            outputs |= {f"prepared/{key}/{i}{at}": v for at, v in flat("", {"": value}).items()}
        outputs |= {f"n_targets/{term}/{i}": np.array(n) for term, n in objective.targets(prepared).items()}
        if (passes := getattr(objective, "passes", None)) is not None:
            costs = [[p.tokens, p.trained, p.times, *(n or 0 for n in p.heads.values())] for p in passes(prepared)]
            outputs[f"passes/{i}"] = np.array(costs, np.float64)
    return inputs, outputs


def _rollout(objective: Objective, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if (rollout := getattr(objective, "rollout", None)) is None:
        return {}
    fields = ("samples", "max_new", "temperature", "batches", "epochs", "steps")
    outputs = {"rollout": np.array([float(getattr(rollout, field)) for field in fields])}
    for shape in ((2, 4), (3, 2), (3, 1), (1, 1)):
        name = f"advantages/{shape[0]}x{shape[1]}"
        inputs[f"rewards/{shape[0]}x{shape[1]}"] = rewards = uniform(name, *shape).numpy()
        n = rewards.size
        given = Answers(
            rewards.reshape(-1), np.ones(n, np.int64), np.zeros(n, bool), np.full((n, 1), -1.0), {}, shape[1]
        )
        outputs[name] = np.asarray(cast(Acts, objective).credit(given)["advantage"]).reshape(shape)
    return outputs


# ---------------------------------------------------------------- the loss


def _batches(objective: Objective) -> dict[str, Batch]:
    """`batch`; and `none`, a batch without targets, or of a validation where the objective acts."""
    if (kind := restoring.of_any(objective)) is not None:
        batch, none = kind.batch(objective)
        return {"batch": batch, "none": {**batch, **none}}
    samples = _samples(objective) if attributes.get(objective, "objective", "reads") != TEXT else []
    if not samples:
        return {"batch": stand_in.batch(objective, rows(), np.random.default_rng(0))}
    prepared = [objective.prepare(sample, np.random.default_rng(0)) for sample in samples]
    batch = stand_in.collated(objective, prepared, SEQ_LEN)
    more: dict[str, Batch] = {}
    if "reward" in batch:
        more["none"] = {key: batch[key] for key in ("reward", "answer_length")}
    elif "span" in batch:
        more["none"] = {**batch, "span": torch.full_like(batch["span"], -1)}
    elif "labels" in batch and batch["labels"].dim() > 1:
        more["none"] = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    elif "labels" in batch:
        more["weighed"] = {**batch, "confidence": torch.tensor([0.25, 1.0, 0.0])}
    return {"batch": batch, **more}


def _best(objective: Objective, batch: Batch, scores: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    if (best_spans := getattr(objective, "best_spans", None)) is None:
        return {}
    names = ("first", "last", "score", "none")
    found = best_spans(ScoredModel(scores, hidden_states(), batch["ids"]), batch)
    return {f"best/{name}": value.numpy() for name, value in zip(names, found, strict=True)}
