"""Variants of runs that were never on a disk."""

import copy
from pathlib import Path

from llmlab.report.collect import Run
from llmlab.report.variant import Variant

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
    made = Run(Path("/nowhere") / name, name, record, config or {}, status, reason)
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
