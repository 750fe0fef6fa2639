import json
import os
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


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
