"""Observer of objectives: the samples that they prepare, and their loss with its gradient.

Inputs:
- `vocabulary` (its size), `counts` (of each id in the training text), `special/NAME` (ids of special tokens) and `draws` (how
  often each text is prepared). Of an objective that `restores` something: `words/continues` and `words/open` of
  `llmlab.slots.Words`.
- Of an objective that `restores` something: texts as TEXT/tokens, TEXT/given, TEXT/documents and TEXT/other. Of one that
  reads text and restores nothing: `rows`, the tokens that `batch` was prepared from. Of one that reads records:
  record/N/FIELD, of a list record/N/FIELD/I.
- Batches: `batch/KEY`; `none/KEY`, one without targets, or of a validation where the objective acts; and `weighed/KEY`, of
  labelled records with a confidence. `BATCH/scores/ROLE`: scores of each head for all tokens or texts. `hidden` (V, D): the
  hidden state of each id; `hidden/ROLE`: that of a companion; `head` (D, V): by which the
  heads alone read hidden states.
- Of an objective that acts: `rewards/SHAPE`.

Outputs:
- Of texts what `texts` or `streams` says of all that the objective `restores`; of a record `prepared/KEY/N`, of a list
  `prepared/KEY/N/I`, `n_targets/TERM/N`, `passes/N`.
- Of each BATCH, under `BATCH/`: `loss/TERM` and `log/NAME` (sum, count), `weight/TERM`, `mean`, and its gradient by the scores
  of each head, `slope/ROLE`. Where it works with companions `read/MODEL`, the ids that each model reads.
- `half/mean`: the mean of `batch` whose scores are rounded to bfloat16, as a model gives them in mixed precision.
- The attributes `shown` and `fixed_counts`; `repeats`, where there is one; of an objective that acts `rollout` (samples,
  max_new, temperature, batches, epochs, steps) and `advantages/SHAPE`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from llmlab import attributes, registry
from llmlab.check.twins.observers import streams, texts
from llmlab.check.twins.observers.observed import Observed, arrays, options_of, sizes_of, uniform
from llmlab.check.twins.settings import Setting
from llmlab.data import stand_in
from llmlab.record_kinds import TEXT
from llmlab.slots import Acts, Answers, Aux, Memory, Objective, Output
from llmlab.twins import Given

SEQ_LEN, ROWS, SIZE, ROUNDED_UP = (
    6,
    3,
    9,
    4,
)  # of the batch whose loss is computed; and rows that only round the table up
WIDTH, BALANCE = 5, 0.25
SEED = 2  # of chances at which some tokens are drawn as they were
Batch = dict[str, Tensor]
OBSERVED = {**texts.OBSERVED, "queries": streams.queries}
FEWER = {**texts.FEWER, "queries": streams.N_DRAWS}


def observe(setting: Setting) -> Observed:
    inputs: dict[str, np.ndarray] = {
        "vocabulary": np.array(texts.vocabulary(setting).size),
        "counts": texts.counts(texts.vocabulary(setting).size),
        "hidden": _hidden().numpy(),
        "head": _head().numpy(),
    }
    companions = registry.declared("objective", setting.name, options_of(setting)).attribute("models")
    inputs |= {f"hidden/{role}": _hidden(role).numpy() for role in companions}
    special = texts.vocabulary(setting).special
    longer = texts.made(setting, texts.SIZE, 40)
    restores = attributes.get(longer, "objective", "restores")
    inputs["draws"] = np.array(FEWER.get(restores, texts.N_DRAWS))
    inputs |= {f"words/{key}": value for key, value in texts.WORDS._asdict().items()} if restores else {}
    inputs |= {f"special/{name}": np.array(at) for name, at in special.items()}
    outputs: dict[str, np.ndarray] = {}
    for name, text in texts.texts(longer).items() if restores else ():
        inputs |= {f"{name}/{key}": value for key, value in text._asdict().items() if value is not None}
        objective = texts.made(setting, texts.SIZE, len(text.tokens) - 1)
        outputs |= OBSERVED[restores](objective, name, text, special)
    objective = texts.made(setting, SIZE, SEQ_LEN)
    if not restores and attributes.get(objective, "objective", "reads") == TEXT:
        inputs["rows"] = _rows()
    for name in ("shown", "fixed_counts"):
        outputs[name] = np.array(float(attributes.get(objective, "objective", name)))
    if (repeats := getattr(objective, "repeats", None)) is not None:
        outputs["repeats"] = np.array(repeats)
    if attributes.get(objective, "objective", "reads") != TEXT:
        given, prepared = _records(objective)
        inputs, outputs = inputs | given, outputs | prepared
    outputs |= _rollout(objective, inputs)
    for name, batch in _batches(objective, restores).items():
        inputs |= {f"{name}/{key}": value for key, value in arrays(batch).items()}
        scores = _scores(setting, name, batch)
        inputs |= {f"{name}/scores/{role}": value for role, value in arrays(scores).items()}
        outputs |= {f"{name}/{key}": value for key, value in _loss(objective, batch, scores).items()}
        if name == "batch":
            half = {role: value.bfloat16() for role, value in scores.items()}
            outputs["half/mean"] = _loss(objective, batch, half)["mean"]
    return Observed(Given(options_of(setting), sizes_of(setting), inputs, {}), outputs)


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
        inputs |= _flat(f"record/{i}", {k: v for k, v in sample.items() if k != "rest"})
        prepared = objective.prepare(sample, np.random.default_rng(0))
        for key, value in prepared.items():
            outputs |= {f"prepared/{key}/{i}{at}": v for at, v in _flat("", {"": value}).items()}
        outputs |= {f"n_targets/{term}/{i}": np.array(n) for term, n in objective.targets(prepared).items()}
        if (passes := getattr(objective, "passes", None)) is not None:
            costs = [[p.tokens, p.trained, p.times, *(n or 0 for n in p.heads.values())] for p in passes(prepared)]
            outputs[f"passes/{i}"] = np.array(costs, np.float64)
    return inputs, outputs


def _flat(before: str, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays by name, those of a list by their numbers."""
    found: dict[str, np.ndarray] = {}
    for key, value in values.items():
        name = f"{before}/{key}".rstrip("/")
        many = isinstance(value, list) and isinstance(value[0], np.ndarray)
        found |= {f"{name}/{i}": v for i, v in enumerate(value)} if many else {name: np.asarray(value)}
    return found


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


def _batches(objective: Objective, restores: str | None) -> dict[str, Batch]:
    """`batch`; and `none`, a batch without targets, or of a validation where the objective acts."""
    if restores == "pairs":
        batch = stand_in.batch(objective, _rows(), np.random.default_rng(0))
        return {"batch": batch, "none": {**batch, "real": torch.full_like(batch["real"], -1)}}
    if restores:
        tokens = torch.arange(ROWS * SEQ_LEN).view(ROWS, SEQ_LEN)
        labels = ((tokens * 5 + 2) % SIZE).where(tokens % 3 != 1, -100)
        batch = {"ids": (tokens * 7 + 1) % SIZE, "labels": labels}
        if restores == "sampled":
            batch = {**stand_in.batch(objective, _rows(), np.random.default_rng(SEED)), **batch}
            if "judged" in batch:
                batch["judged"] = (tokens % 5 != 1) | (labels >= 0)
        if attributes.get(objective, "objective", "topologies") == ("encoder_decoder",):
            batch["source_ids"] = (tokens * 4) % SIZE
        none = {"labels": torch.full_like(labels, -100)}
        if restores == "pair":
            batch |= {
                "segments": torch.arange(SEQ_LEN).ge(3).long().expand(ROWS, -1),
                "pair_labels": torch.tensor([0, 1, 1]),
            }
        if restores == "framed":
            batch["boundary_labels"] = ((tokens * 2 + 3) % SIZE).where(tokens % 4 != 2, -100)
            none["boundary_labels"] = none["labels"]
        if restores == "queries":
            batch |= {"rank": tokens % 4, "positions": tokens % SEQ_LEN, "queries": labels != -100}
            batch |= {"before_ids": tokens[:, :2] % SIZE, "before_rank": tokens[:, :2] % 2}
        if restores == "diffused":
            batch |= {"weight": torch.tensor([1.5, 4.0, 1.0]), "maskable": torch.tensor([6, 5, 6])}
        return {"batch": batch, "none": {**batch, **none}}
    samples = _samples(objective) if attributes.get(objective, "objective", "reads") != TEXT else []
    if not samples:
        return {"batch": stand_in.batch(objective, _rows(), np.random.default_rng(0))}
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


def _rows() -> np.ndarray:
    return np.arange(ROWS * (SEQ_LEN + 1)).reshape(ROWS, -1) * 5 % SIZE


class _Model:
    """A model whose heads give these scores, and whose hidden state of a token is the row of a table, plus half of what
    `hidden` states it is given. Its heads alone give hidden states times `_head`."""

    def __init__(self, scores: Mapping[str, Tensor], hidden: Tensor, ids: Tensor | None):
        self.scores, self.hidden, self.ids = scores, hidden, ids
        self.read: list[Tensor] = []

    def __call__(
        self,
        batch: Mapping[str, Tensor],
        heads: Mapping[str, Tensor | None] | None = None,
        memory: Memory | None = None,
    ) -> Output:
        if "ids" not in batch:  # for its heads alone
            return Output(batch["hidden"], {role: batch["hidden"] @ _head() for role in heads or ()}, None)
        self.read.append(batch["ids"])
        rows = heads if heads is not None else dict.fromkeys(self.scores)
        scores = self.scores
        if self.ids is not None and self.ids.shape[0] > batch["ids"].shape[0]:
            # Some of the texts, as an objective of a mixture reads them: those of the same ids.
            width = batch["ids"].shape[1]
            at_rows = (self.ids[None, :, :width] == batch["ids"][:, None]).all(-1).int().argmax(1)
            scores = {role: value[at_rows, :width] for role, value in scores.items()}
        found = {role: scores[role] if at is None else scores[role][at] for role, at in rows.items()}
        hidden = self.hidden[batch["ids"]]
        if "hidden" in batch:
            hidden = hidden + batch["hidden"] / 2
        return Output(hidden, found, Aux(torch.tensor(BALANCE), torch.tensor([[3, 1]])))


def _scores(setting: Setting, name: str, batch: Batch) -> dict[str, Tensor]:
    """Scores of the heads that it asks for, and of its companions' under COMPANION.ROLE."""
    entry = registry.declared("objective", setting.name, options_of(setting))
    heads = dict(entry.attribute("heads"))
    for role, model in entry.attribute("models").items():
        heads |= {f"{role}.{head}": part for head, part in model.get("heads", {}).items()}
    if "row_ids" in batch:  # as many texts as there are rows that are not only padding
        shape = (int(batch["row_valid"].any(-1).sum()), batch["row_ids"].shape[-1])
    elif "ids" in batch:
        shape = (batch["ids"].shape[0], batch["ids"].shape[1])
    else:
        return {}
    made = {}
    for role, head in heads.items():
        entry = registry.index()["head", head]
        one = "n_classes" in entry.options and not entry.options["n_classes"].default  # a score a token
        one_each = shape if one else (*shape, 2 if head == "span" else 3)
        sizes = {"text": (shape[0], 4), "context": shape, "token": one_each}
        made[role] = 2 * uniform(f"{name} {role}", *sizes.get(entry.attribute("scores"), (*shape, SIZE + ROUNDED_UP)))
    return made


def _hidden(role: str = "") -> Tensor:
    return uniform(f"hidden {role}".strip(), texts.SIZE, WIDTH)


def _head() -> Tensor:
    return 2 * uniform("head", WIDTH, SIZE + ROUNDED_UP)


def _loss(objective: Objective, batch: Batch, scores: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    leaves = {role: value.clone().requires_grad_() for role, value in scores.items()}
    own = {role: leaf for role, leaf in leaves.items() if "." not in role}
    others: dict[str, dict[str, Tensor]] = {role: {} for role in attributes.get(objective, "objective", "models")}
    for role, leaf in leaves.items():
        if "." in role:
            others.setdefault(role.partition(".")[0], {})[role.partition(".")[2]] = leaf
    hidden = _hidden().requires_grad_()
    # Each has hidden states of its own: what is compared of two models must differ, and a slope there shows.
    theirs = {role: _hidden(role).requires_grad_() for role in others}
    companions = {role: _Model(heads, theirs[role], batch.get("ids")) for role, heads in others.items()}
    model = _Model(own, hidden, batch.get("ids"))
    loss = objective.loss(model, batch, **companions)
    mean = loss.mean()
    if mean.requires_grad:
        mean.backward()
    slopes = {f"slope/{role}": torch.zeros_like(v) if v.grad is None else v.grad for role, v in leaves.items()}
    for name, table in {"hidden": hidden, **{f"{role}.hidden": t for role, t in theirs.items()}}.items():
        if table.grad is not None:
            slopes[f"slope/{name}"] = table.grad
    terms = {f"loss/{name}": torch.stack([s.double(), n.double()]) for name, (s, n) in loss.terms.items()}
    logs = {f"log/{name}": torch.stack([s.double(), n.double()]) for name, (s, n) in loss.logs.items()}
    weights = {f"weight/{name}": torch.tensor(float(w)) for name, w in loss.weights.items()}
    both = {"model": model, **companions} if companions else {}
    read = {f"read/{role}": torch.stack(each.read) for role, each in both.items()}
    return arrays({"mean": mean, **slopes, **terms, **logs, **weights, **read})
