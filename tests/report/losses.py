"""Losses of made-up variants, and changes of what was recorded."""

import json
import random

SEEDS = range(1, 6)
BASE = {s: 2.3 + 0.02 * s for s in SEEDS}


def shifted(by, noise=0.0, seed=0):
    chance = random.Random(seed)
    return {s: v + by + chance.gauss(0, noise) for s, v in BASE.items()}


def change(folder, match, **fields):
    for file in folder.glob(f"{match}/run.json"):
        record = json.loads(file.read_text())
        for key, value in fields.items():
            *path, last = key.split("__")
            node = record
            for name in path:
                node = node[name]
            node[last] = value
        file.write_text(json.dumps(record))
