import os
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

os.environ.setdefault("OMP_NUM_THREADS", "1")

WORDS = [
    "the",
    "a",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "lazy",
    "dog",
    "and",
    "runs",
    "far",
    "from",
    "old",
    "river",
    "bank",
]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A folder of small texts; prepared data is cached beside it."""
    root = tmp_path_factory.mktemp("training")
    os.environ["LLMLAB_CACHE"] = str(root / "cache")
    texts = root / "texts"
    texts.mkdir()
    chance = random.Random(0)
    for i in range(30):
        (texts / f"{i}.txt").write_text(" ".join(chance.choice(WORDS) for _ in range(150)))
    return texts


@pytest.fixture(scope="session")
def tiny(corpus) -> list[str]:
    """Overrides of a run that takes a second."""
    return [
        "data=files",
        f"data.path={corpus}",
        "tokenizer=char",
        "data.seq_len=16",
        "model.dim=16",
        "model.n_layers=1",
        "model.n_heads=2",
        "train.batch_size=8",
        "train.validation_batches=2",
        "train.sample=false",
        "budget.steps=12",
    ]
