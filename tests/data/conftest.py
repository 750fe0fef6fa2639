import numpy as np
import pytest


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("LLMLAB_CACHE", str(folder))
    return folder


def prose(n_words: int, seed: int) -> str:
    """Words of a small made-up language: some come often, and each likes certain followers."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("abcdefghilmnoprstu"), size=rng.integers(2, 8))) for _ in range(200)]
    at, out = 0, []
    for _ in range(n_words):
        at = int((at * 7 + rng.zipf(1.6)) % 200)
        out.append(words[at] + (".\n" if rng.random() < 0.1 else ""))
    return " ".join(out)


@pytest.fixture
def folder_of_texts(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(40):
        (folder / f"{i:02}.txt").write_text(prose(150, i) + " naïve café 数据 🙂\n", encoding="utf-8")
    return folder
