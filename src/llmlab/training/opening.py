"""What is known of a run before its first step: the fields of its record, and the lines that it begins with."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any, cast

from omegaconf import OmegaConf

from llmlab import registry
from llmlab.config import traits
from llmlab.lab import record
from llmlab.model.table import describe
from llmlab.training import ahead


def fields(task: Any, recipe: Any, horizon: dict[str, Any], place: Any, cut: Any) -> dict[str, Any]:
    composed, corpus = task.composed, recipe.corpus
    cfg = composed.cfg
    return {
        "schema": record.SCHEMA,
        "status": "running",
        "reason": None,
        "command": record.command(),
        "overrides": list(composed.overrides),
        "typed": [
            f"{t.group}@{t.package}={t.choice}" if t.package else f"{t.group}={t.choice}" for t in composed.typed
        ],
        "experiment": cfg.experiment_name,
        "seed": cfg.seed,
        "family": cfg.model.family,
        "parts": {
            **_brought(recipe.spec),
            **record.parts(cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))),
        },
        "layers": describe(recipe.spec),
        "notes": [*notes(task, recipe), *corpus.manifest["notes"]],  # the latter are said when the corpus is opened
        "plugins": os.environ.get(registry.VARIABLE) or None,
        "versions": record.versions(),
        "hardware": record.hardware(place.threads, place.names()),
        "precision": cfg.precision,
        **where(cfg, place, cut),
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "budget": horizon,
        "data": {
            "fingerprint": corpus.fingerprint,
            "tokens": corpus.tokens,
            "train_tokens": len(corpus.train),
            "validation_tokens": len(corpus.validation),
            "vocabulary": corpus.vocabulary.size,
        },
        "parameters": {"total": recipe.cost.parameters.total, "active": recipe.cost.parameters.active},
        "flops_per_token": recipe.cost.flops_per_token,
        "tokens_seen": 0,
        "steps": 0,
        "wall_seconds": 0.0,
        "tokens_per_second": None,
        "mfu": None,
        "peak_memory_bytes": 0,
        "metrics": {},
    }


def where(cfg: Any, place: Any, cut: Any) -> dict[str, Any]:
    """Fields that change when a run is resumed elsewhere: on what, and how the batch is then cut."""
    return {
        "strategy": cfg.strategy.name,
        "devices": place.world,
        "batch": {
            "sequences": cut.batch_size,
            "micro": cut.micro,
            "accumulate": cut.accumulate,
            "seq_len": cfg.data.seq_len,
        },
    }


def _brought(spec: Any) -> dict[str, str]:
    """The masks and heads that the objective brings: the config has them only where they were chosen."""
    lone = len(spec.stacks) == 1
    masks = {"mask" if lone else f"stacks.{s.name}.mask": s.mask.name for s in spec.stacks}
    return {**masks, **{f"heads.{role}": head.name for role, head in spec.heads.items()}}


def notes(task: Any, recipe: Any) -> list[str]:
    """What a choice displaced, what a part can't honour, what has no effect."""
    found = [*recipe.spec.notes, *traits.notes(task.composed, recipe.spec), *map(str, recipe.cost.account.said)]
    if "model.max_positions" in task.composed.keys and not ahead.bounded(recipe.spec):
        found.append("model.max_positions: no position part here is bounded by it, so nothing changes; leave it out")
    return found


def lines(task: Any, recipe: Any, horizon: dict[str, Any], last_step: int, cut: Any) -> list[str]:
    spec, corpus, cost = recipe.spec, recipe.corpus, recipe.cost.parameters
    active = f" ({cost.active:,} active)" if cost.active != cost.total else ""
    objective = task.composed.cfg.objective["_part_"]
    first = (
        f"{spec.family}: {cost.total:,} parameters{active}, vocabulary {spec.sizes.vocab_size:,}, objective={objective}"
    )
    said = [first, *describe(spec)]
    said += [f"note: {note}" for note in notes(task, recipe)]
    said.append(f"data: {len(corpus.train):,} training and {len(corpus.validation):,} validation tokens")
    run = (
        f"run: {last_step:,} step{'s' * (last_step != 1)} of {cut.batch_size} x {task.composed.cfg.data.seq_len} tokens"
    )
    if last_step < horizon["steps"]:
        run += f" (cut short of a budget of {horizon['steps']:,} by trainer.max_steps)"
    passes = last_step * cut.batch_size * task.composed.cfg.data.seq_len / max(1, len(corpus.train))
    shown = f"{passes:,.0f}" if passes >= 10 else f"{passes:.2g}"
    return [*said, f"{run}, {shown} times the text, in {task.folder}"]
