"""Variants of runs that were never on a disk."""

import copy
from pathlib import Path

from llmlab.report.collect import Found, Run
from llmlab.report.variant import Variant
from llmlab.report.variants import group

ROOT = Path("/nowhere")
# (loss, seed, learning rate)
GRID = [(2.2, 1, 0.1), (2.4, 2, 0.1), (2.0, 1, 0.3), (2.1, 2, 0.3), (2.5, 1, 1.0), (2.6, 2, 1.0)]
KEPT = {
    "data": {"fingerprint": "f" * 64, "vocabulary": 30},
    "hardware": {"cpu": "a CPU", "threads": 1, "devices": ["cpu"]},
    "batch": {"micro": 8, "seq_len": 16},
    "parameters": {"total": 1000, "active": 1000},
    "flops_per_token": 6000.0,
    "tokens_seen": 10_000,
    "steps": 100,
    "budget": {"unit": "steps", "steps": 100},
    "devices": 1,
}


def run(loss, seed=1, rows=None, name=None, status="completed", reason=None, config=None, **fields):
    """One run; `fields` replace those of its record, "batch__seq_len" one of a mapping in it. rows: of its metrics."""
    record = copy.deepcopy(KEPT) | {"seed": seed, "began": f"2026-{seed:02}"}
    record["metrics"] = {} if loss is None else {"val_loss": loss}
    for key, value in fields.items():
        *path, last = key.split("__")
        node = record
        for part in path:
            node = node[part]
        node[last] = copy.deepcopy(value)
    name = name or f"run{seed}"
    made = Run(ROOT / name, name, record, config or {}, status, reason)
    made.__dict__["rows"] = rows or {}  # in place of what metrics.csv has
    return made


def variant(name, losses, leaves=None, rows=None, **fields):
    """A variant whose runs all count. losses: {seed: validation loss}; rows: {seed: rows}, or those of each."""
    runs = [
        run(loss, s, (rows or {}).get(s, rows if rows and s not in rows else None), **fields)
        for s, loss in losses.items()
    ]
    counted = {r.seed: r for r in runs}
    return Variant({"objective": "clm", **(leaves or {})}, set(), runs, name, {}, counted)


def unended(name, **fields):
    """A variant of which no run counts."""
    made = variant(name, {1: None}, **fields)
    made.counted = {}
    return made


def config(**keys):
    """A nested config; `optimizer__lr` is optimizer.lr."""
    made = {"attention": {"_part_": "mha"}, "optimizer": {"_part_": "adamw", "lr": 0.1}, "data": {"path": "a"}}
    for key, value in keys.items():
        *path, last = key.split("__")
        node = made
        for name in path:
            node = node.setdefault(name, {})
        node[last] = value
    return made


def several(*points, **fields):
    """A run each: (loss, seed, {key: value})."""
    return [
        run(loss, seed, name=f"r{i}", config=config(seed=seed, **keys), began=f"2026-01-{i + 1:02}", **fields)
        for i, (loss, seed, keys) in enumerate(points)
    ]


def grouped(runs, tune=None, metric="val_loss", sweeps=()):
    return group(Found(ROOT, runs, list(sweeps)), metric, tune)


def attention(name):
    return {"attention": {"_part_": name}}


def over_lr(points, **more):
    return several(*((loss, seed, {"optimizer__lr": lr, **more}) for loss, seed, lr in points))
