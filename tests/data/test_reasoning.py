"""Questions of reasoning_gym and their scores, by a package of the same interface: the tests do not have the real one."""

import json
import sys
import zlib

import pytest

from llmlab import reasoning_tasks, registry
from llmlab.config.compose import compose
from llmlab.config.schema import Data
from llmlab.data.sources import open_source
from llmlab.errors import UserError

PACKAGE = '''
class Counting:
    """Of version 0.1.25: a data set knows its seed and size, makes an entry by its index, and scores an answer to it."""

    def __init__(self, seed, size):
        self.seed, self.size = seed, size

    def __len__(self):
        return self.size

    def __iter__(self):
        return (self[i] for i in range(self.size))

    def __getitem__(self, i):
        n = (self.seed + i) % 5
        print(".", end="")
        return {"question": f"After {n}?", "answer": str(n + 1), "metadata": {"source_index": i, "pair": (n, n + 1)}}

    def score_answer(self, answer, entry):
        if answer == "wait":
            while True:
                pass
        # A tuple is what an entry that went through JSON would not have.
        return 1.0 if (int(answer) - 1, int(answer)) == entry["metadata"]["pair"] else 0.25


class Pictures(Counting):
    def __getitem__(self, i):
        return {**super().__getitem__(i), "answer": None}


def create_dataset(name, seed, size):
    return DATASETS[name](seed, size)


DATASETS = {"counting": Counting, "pictures": Pictures, "composite": None}
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "reasoning_gym"
    folder.mkdir()
    (folder / "__init__.py").write_text(PACKAGE)
    (folder / "factory.py").write_text("from reasoning_gym import DATASETS\n")
    about = tmp_path / "reasoning_gym-0.1.25.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: reasoning-gym\nVersion: 0.1.25\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    yield
    for name in ("reasoning_gym", "reasoning_gym.factory"):
        sys.modules.pop(name, None)


def read(reads="prompts", **options):
    source = open_source(Data(source="reasoning_gym", **options), reads)
    return [json.loads(d.text) for d in source.read(lambda *_: None)]


def test_questions_are_read_once_each_and_scored_as_the_package_does(package, monkeypatch):
    records = read(task="counting", n_records=8)
    assert [r["prompt"] for r in records] == [f"After {n}?\n" for n in range(5)]
    assert records[3]["rest"] == {"answer": "4", "reasoning_gym": ["counting", 0, 8, 3, zlib.crc32(b"After 3?")]}
    talks = read("chat", task="counting", n_records=3)
    assert [m["content"] for m in talks[2]["messages"]] == ["After 2?\n", "3"]
    # What is handed on to the process of scores has no PYTHONPATH, which would be the user's own.
    limited = sys.modules[registry.load("reward", "reasoning_gym", {}).func.__module__.rpartition(".")[0] + "._limited"]
    monkeypatch.setattr(limited, "KEPT", (*limited.KEPT, "PYTHONPATH"))
    answers = [str(n + 1) for n in range(5)]
    rests = [r["rest"] for r in records]
    reward = registry.load("reward", "reasoning_gym", {"timeout": 0.5})()
    scores = reward.score([*rests, *rests[:4]], [*answers, "7", "seven", "wait", ""])
    assert scores == [1.0] * 5 + [0.25, 0.0, 0.0, 0.0]
    assert scores.shown["reasoning_invalid"][5:] == [0, 1, 0, 1]
    assert scores.shown["reasoning_timed_out"][5:] == [0, 0, 1, 0]
    with pytest.raises(UserError, match="question 2 of counting was made by another version"):
        reward.score([{"reasoning_gym": ["counting", 0, 8, 2, 1]}], ["3"])
    tagged = registry.load("reward", "reasoning_gym", {"tag": "answer"})()
    assert tagged.score(rests[:3], ["<answer>9</answer> so <answer> 1 </answer>", "2", "<answer>3"]) == [1.0, 0.0, 0.0]


def test_a_source_says_which_questions_it_has(package):
    stamps = [
        open_source(Data(source="reasoning_gym", task="counting", n_records=n), reads).stamp
        for n, reads in ((8, "prompts"), (9, "prompts"), (8, "chat"))
    ]
    assert len({json.dumps(s) for s in stamps}) == 3 and "0.1.25" in stamps[0]


def test_what_cannot_be(package):
    for options, reads, said in (
        ({"task": "countin"}, "prompts", "reasoning_gym has no such task; did you mean counting"),
        ({"task": "composite"}, "prompts", "no such task"),
        ({"task": "counting"}, "preferences", "read as prompts or chat, not as preferences"),
        ({"task": "pictures"}, "chat", "its questions have no one answer"),
    ):
        with pytest.raises(UserError, match=said):
            read(reads, **options)
    for words, said in (
        (["data=reasoning_gym"], "data.task must be given with data=reasoning_gym"),
        (["data=arithmetic", "data.task=counting"], "data.task is of data=reasoning_gym, but data=arithmetic"),
    ):
        with pytest.raises(UserError, match=said):
            compose(["alignment=reinforce", "reward=exact", *words])


def test_without_the_package_a_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    for made in (reasoning_tasks.tasks, registry.load("reward", "reasoning_gym", {})):
        with pytest.raises(UserError, match=r'^reasoning_gym is not installed: pip install "llmlab\[reasoning\]"$'):
            made()
    with pytest.raises(ValueError, match="reward.tag"):
        registry.load("reward", "reasoning_gym", {"tag": "<a>"})()
