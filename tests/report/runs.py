"""Run folders as real runs write them, with losses that are made up."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from llmlab.files import write_atomic
from llmlab.runs.metrics import METRICS, Table
from llmlab.runs.record import Record

PARTS = {"attention": {"_part_": "mha"}, "ffn": {"_part_": "swiglu", "act": "silu"}, "norm": {"_part_": "rmsnorm"}}
COLUMNS = ["step", "tokens", "loss", "lr", "grad_norm", "nll", "val_loss", "val_perplexity", "val_bits_per_byte"]


def config(**changes: Any) -> dict[str, Any]:
    """A resolved config; changes by dotted key: {"optimizer.lr": 1e-3, "attention": {"_part_": "mla", ...}}."""
    base = {
        "seed": 1,
        "model": {"family": "llama3", "dim": 32, "n_layers": 2},
        **PARTS,
        "mask": None,
        "objective": {"_part_": "clm"},
        "optimizer": {"_part_": "adamw", "lr": 0.004},
        "data": {
            "source": "files",
            "path": "texts",
            "seq_len": 16,
            "validation": 0.1,
            "split": "document",
            "num_workers": 0,
        },
        "tokenizer": {"kind": "char", "vocab_size": 1024, "path": None},
        "train": {"batch_size": 8, "validation_batches": None, "keep": 2},
        "budget": {"tokens": None, "steps": 100},
        "trainer": {"max_steps": -1},
        "experiment_name": None,
    }
    cfg = OmegaConf.create(base)
    for key, value in changes.items():
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    return cfg


def make(
    folder: Path,
    loss: float | None,
    *,
    seed: int = 1,
    overrides: tuple[str, ...] = (),
    changes: dict[str, Any] | None = None,
    rows: int = 20,
    began: str = "2026-01-01T00:00:00+00:00",
    **fields: Any,
) -> Path:
    """One run folder that ended at `loss`; `fields` replace those of its record, by dotted key."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "config.yaml", OmegaConf.to_yaml(config(**{"seed": seed, **(changes or {})}), resolve=True))
    steps, per_step = 100, 128
    metrics = {} if loss is None else {
        "val_loss": loss, "val_perplexity": math.exp(loss), "val_bits_per_byte": loss / math.log(2) / 3, "loss": loss - 0.05,
    }  # fmt: skip
    record = OmegaConf.create({
        "schema": 1, "status": "completed", "reason": None, "command": "llmlab train " + " ".join(overrides),
        "overrides": list(overrides), "seed": seed, "family": "llama3",
        "versions": {"commit": "0123456789abcdef0123456789abcdef01234567"},
        "hardware": {"cpu": "a CPU", "threads": 1, "devices": ["cpu"]}, "devices": 1, "began": began,
        "budget": {"unit": "steps", "amount": steps, "steps": steps, "tokens": steps * per_step},
        "batch": {"sequences": 8, "micro": 8, "accumulate": 1, "seq_len": 16},
        "data": {"fingerprint": "f" * 64, "vocabulary": 30}, "parameters": {"total": 10_000, "active": 10_000},
        "flops_per_token": 60_000.0, "tokens_seen": steps * per_step, "steps": steps, "wall_seconds": 1.0,
        "tokens_per_second": 5000.0 + seed, "peak_memory_bytes": 2**28, "metrics": metrics,
    })  # fmt: skip
    for key, value in fields.items():
        OmegaConf.update(record, key.replace("__", "."), value, merge=False)
    Record(folder).update(**OmegaConf.to_container(record))
    if loss is not None:
        table, chance = Table(folder / METRICS), random.Random(seed)
        for i in range(1, rows + 1):
            step = round(steps * i / rows)
            now = loss + 2.0 * math.exp(-6 * i / rows) - 2.0 * math.exp(-6)
            row = {"step": step, "tokens": step * per_step}
            table.write(
                {**row, "loss": now + chance.gauss(0, 0.02), "lr": 0.001, "grad_norm": 1.0, "nll": now}, COLUMNS
            )
            if i % max(1, rows // 10) == 0:
                value = {"val_loss": now, "val_perplexity": math.exp(now), "val_bits_per_byte": now / math.log(2) / 3}
                table.write({**row, **value}, COLUMNS)
    return folder


PART = {
    "mha": {"_part_": "mha"},
    "gqa": {"_part_": "gqa", "share": "groups"},
    "mla": {"_part_": "mla", "kv_rank": None, "q_rank": None},
}


def sweep(root: Path, losses: dict[str, dict[int, float | None]], **fields: Any) -> Path:
    """A sweep over attention and seeds: {"mha": {1: 2.0, 2: 2.1}, ...}; the first is the baseline. None: that run failed."""
    points = []
    for name, by_seed in losses.items():
        for seed, loss in by_seed.items():
            folder = f"attention={name},seed={seed}"
            typed = (f"attention={name}", f"seed={seed}", "data=files")
            more = dict(fields)
            if loss is None:
                more |= {"status": "failed", "reason": "the loss is not a number", "steps": 12}
            # an attention of another name is one that only this sweep knows, e.g. of an A/A comparison
            part = {"attention": PART.get(name, {"_part_": name})}
            make(root / folder, loss, seed=seed, overrides=typed, changes=part, **more)
            points.append({"folder": folder, "overrides": list(typed[:2]), "hash": "0" * 64})
    seeds = sorted({str(s) for by_seed in losses.values() for s in by_seed})
    typed = [f"attention={','.join(losses)}", f"seed={','.join(seeds)}"]
    command = f"llmlab train -m {' '.join(typed)} data=files"
    keys = {"attention": list(losses), "seed": seeds}
    about = {
        "schema": 1,
        "name": root.name,
        "command": command,
        "overrides": typed,
        "keys": keys,
        "fixed": ["data=files"],
    }
    write_atomic(root / "sweep.json", json.dumps({**about, "points": points}))
    return root
