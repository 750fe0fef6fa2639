"""Full fine-tuning on a labelled set: all weights and a new head learn, by the objective `classification`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from llmlab import registry
from llmlab.config.spec import ModelSpec, PartSpec
from llmlab.data import collate
from llmlab.errors import UserError
from llmlab.model import build
from llmlab.probing.features import edge, prepared
from llmlab.probing.scores import Split, split
from llmlab.probing.texts import Read
from llmlab.slots import Vocabulary

if TYPE_CHECKING:
    from llmlab.model.model import Model

HEAD, HELD_OUT = "classes", 0.2


@dataclass(frozen=True)
class Recipe:
    """AdamW with a warm-up of a tenth and a linear decay to 0, as BERT's fine-tuning has it (Devlin et al. 2018,
    arXiv:1810.04805, appendix A.3). rates: of several the best on a fifth of the training texts is taken."""

    epochs: int = 5
    batch_size: int = 16
    rates: tuple[float, ...] = (5e-5, 3e-4, 1e-3)
    weight_decay: float = 0.01
    clip: float = 1.0


@dataclass(frozen=True)
class Task:
    """A labelled set as a model reads it. segments: that the model tells apart."""

    read: Read
    classes: np.ndarray
    n_classes: int
    segments: int


def pool_of(spec: ModelSpec, read: Read) -> str:
    """The vector of a text that the head reads."""
    return edge(spec, read) or "mean"


def accuracy(
    model: Model, task: Task, part: Split, seed: int, recipe: Recipe, tick: Callable[[int, int], None]
) -> float:
    """Accuracy on the test texts of a copy of the model that learnt the training texts.

    The learning rate is chosen on a part of the training texts, before all of them are learnt.
    """
    rates, steps = recipe.rates, _steps(len(part.train), recipe)
    rate = rates[0]
    total = steps if len(rates) == 1 else steps + len(rates) * _steps(round(len(part.train) * (1 - HELD_OUT)), recipe)
    done = 0

    def step() -> None:
        nonlocal done
        done = min(done + 1, total)
        tick(done, total)

    if len(rates) > 1:
        inner = split(task.classes[part.train], HELD_OUT, seed)
        held = Split(part.train[inner.train], part.train[inner.test])
        found = [_trained_accuracy(model, task, held, seed, recipe, r, step) for r in rates]
        rate = rates[int(np.argmax(found))]
    return _trained_accuracy(model, task, part, seed, recipe, rate, step)


def _steps(texts: int, recipe: Recipe) -> int:
    return recipe.epochs * -(-texts // recipe.batch_size)


def _trained_accuracy(
    model: Model, task: Task, part: Split, seed: int, recipe: Recipe, rate: float, step: Callable[[], None]
) -> float:
    tuned = classifier(model, task, seed)
    objective = registry.load("objective", "classification", {})(
        Vocabulary(model.sizes.vocab_size, {}), model.sizes.max_positions
    )
    decayed = [p for p in tuned.parameters() if p.dim() > 1]
    rest = [p for p in tuned.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate)
    steps = _steps(len(part.train), recipe)
    warm = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min((t + 1) / warm, (steps - t) / (steps - warm + 1))
    )
    rng = np.random.default_rng(seed)
    # Dropout draws from torch's own generator, whose state is the caller's.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for _ in range(recipe.epochs):
            order = rng.permutation(part.train)
            for at in range(0, len(order), recipe.batch_size):
                loss = objective.loss(tuned.train(), _batch(tuned, task, order[at : at + recipe.batch_size])).mean()
                if not torch.isfinite(loss):
                    raise UserError(
                        f"fine-tuning diverged: the loss is {loss.item()} at lr={rate:g}; choose a smaller one"
                    )
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(tuned.parameters(), recipe.clip)
                optimizer.step()
                schedule.step()
                step()
    return _score(tuned.eval(), task, part.test, recipe.batch_size)


def classifier(model: Model, task: Task, seed: int) -> Model:
    """A copy of the model with a new head, whose first values follow from the seed."""
    pool = pool_of(model.spec, task.read)
    # BERT's pooler has a linear and a tanh; a decoder's (GPT) and a mean have none.
    act = "tanh" if pool == "first" else "none"
    head = PartSpec.with_defaults("head", "pooled", n_classes=task.n_classes, pool=pool, act=act)
    tuned = build.build_model(replace(model.spec, heads={HEAD: head}), seed)
    weights: Mapping[str, Tensor] = {k: v for k, v in model.state_dict().items() if not k.startswith("heads.")}
    tuned.load_state_dict(weights, strict=False)
    return tuned.to(next(model.parameters()).device)


def _batch(model: Model, task: Task, rows: np.ndarray) -> dict[str, Tensor]:
    samples = [{**prepared(task.read, i, task.segments), "labels": task.classes[i]} for i in rows]
    batch: dict[str, Any] = collate.batch(samples, "pad", most=model.sizes.max_positions)
    return {k: v.to(next(model.parameters()).device) for k, v in batch.items()}


@torch.inference_mode()
def _score(model: Model, task: Task, rows: np.ndarray, batch_size: int) -> float:
    right = 0
    for at in range(0, len(rows), batch_size):
        batch = _batch(model, task, rows[at : at + batch_size])
        right += int((model(batch, heads={HEAD: None}).heads[HEAD].argmax(-1) == batch["labels"]).sum())
    return right / len(rows)
