import gc
import json
import os
import random
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

# A fifth of the time went into looking through what is imported.
# Below the 100,000 of the command line, which a run in this process would end.
gc.set_threshold(50_000, 10, 10)


# Files that take minutes. Of two workers one waits for the file that the other began last.
LONG = [
    "docs/test_pages.py",
    "training/test_zero.py",
    "training/test_objectives.py",
    "plan/test_memory.py",
    "training/test_strategies.py",
    "benchmarks/test_objectives.py",
    "check/test_bugs.py",
]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    rank = {here / name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session):
    gc.freeze()


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


@pytest.fixture(scope="module")
def transformers():
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


@pytest.fixture(scope="session")
def words(tmp_path_factory):
    """A word-level tokenizer of some words with an eos, a text of them, and what one sentence is in it."""
    return Words(tmp_path_factory)


class Words:
    list = ("the", "a", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "runs", "far", "from", "river")
    eos = 0
    expected = "[1, 5, 10]"

    def __init__(self, factory):
        root = factory.mktemp("words")
        os.environ["LLMLAB_CACHE"] = str(root / "cache")
        self.text = root / "text.txt"
        chance = random.Random(0)
        self.text.write_text(" ".join(chance.choice(self.list) for _ in range(3000)))

    def save(self, folder, template=None):
        """tokenizer.json and tokenizer_config.json in a checkpoint's folder; the size of the vocabulary."""
        from tokenizers import Tokenizer, models, pre_tokenizers

        inner = Tokenizer(models.WordLevel({"<end>": 0, **{w: i for i, w in enumerate(self.list, 1)}}, "<end>"))
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        inner.add_special_tokens(["<end>"])
        inner.save(str(folder / "tokenizer.json"))
        about = {"eos_token": "<end>", "tokenizer_class": "PreTrainedTokenizerFast"}
        if template is not None:
            about["chat_template"] = template
        (folder / "tokenizer_config.json").write_text(json.dumps(about))
        return 1 + len(self.list)
