"""The cache on a disk that is full or read-only, and after processes that were killed."""

import errno
import os
import resource
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from llmlab import files
from llmlab.config.schema import Data, Tokenizer
from llmlab.data import cache, prepare
from llmlab.errors import UserError


def corpus(path, **options):
    return prepare(Data(source="files", path=str(path), seq_len=16, **options), Tokenizer(vocab_size=320))


def left_over(folder):
    return [str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file() and p.suffix != ".lock"]


@contextmanager
def full_after(n):
    """Files of this process can't grow beyond n bytes, which is reported as a full disk is, at the write that is too much."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


@pytest.mark.parametrize("n", [1, 200, 2_000, 5_000, 20_000])
def test_a_full_disk_is_one_line_and_leaves_nothing(folder_of_texts, cache_folder, n):
    with full_after(n), pytest.raises(UserError) as caught:
        corpus(folder_of_texts)
    said = str(caught.value)
    assert said.startswith(f"the cache {cache_folder / 'corpora'} is full (File too large")
    assert said.endswith("set LLMLAB_CACHE to another folder") and "\n" not in said and "bytes were written" in said
    assert left_over(cache_folder) == []
    assert corpus(folder_of_texts).tokens > 1000


@pytest.mark.parametrize(
    "name", ["train.npy", "validation_starts.npy", "validation_sizes.npy", "tokenizer.json", "manifest"]
)
def test_each_file_of_a_corpus(folder_of_texts, cache_folder, monkeypatch, name):
    """The disk is full just when this file is opened."""
    real = Path.open

    def full(path, mode="r", *args, **options):
        if name in path.name and "w" in mode:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, mode, *args, **options)

    monkeypatch.setattr(Path, "open", full)
    monkeypatch.setattr(files, "open", lambda path, *args: full(Path(path), *args), raising=False)
    with pytest.raises(UserError, match="is full .No space left on device.*: set LLMLAB_CACHE") as caught:
        corpus(folder_of_texts)
    if name.endswith(".npy"):
        assert f": {name} needs " in str(caught.value)
    assert left_over(cache_folder) == []


def test_arrays_are_whole_or_an_error(tmp_path):
    """numpy writes past Python's file object, and what the C library still held when the disk was full is lost in silence."""
    for array in (np.arange(5000), np.zeros(0, np.uint16), np.arange(12).reshape(3, 4).T):
        cache.save_array(tmp_path / "a.npy", array)
        assert np.array_equal(np.load(tmp_path / "a.npy"), array)
    with full_after(30_000), pytest.raises(OSError, match=r"a\.npy needs 40,000 bytes"):
        cache.save_array(tmp_path / "a.npy", np.arange(5000))


def test_a_finished_corpus_needs_no_writing(folder_of_texts, cache_folder, monkeypatch, capsys):
    first = corpus(folder_of_texts)

    def refused(path, *args, **options):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    for name in ("mkdir", "open", "write_text", "write_bytes", "unlink"):
        real = getattr(Path, name)
        monkeypatch.setattr(
            Path,
            name,
            lambda path, *a, _real=real, _name=name, **k: (
                _real(path, *a, **k) if _name == "open" and a[:1] in ((), ("rb",), ("r",)) else refused(path)
            ),
        )
    monkeypatch.setattr(os, "replace", refused)
    again = corpus(folder_of_texts)
    assert np.array_equal(again.train.tokens, first.train.tokens)
    assert capsys.readouterr().err == ""
    bits = again.ngram((2,))
    assert "ngram.json is not kept in the cache" in capsys.readouterr().err
    assert again.ngram((2,)) == bits
    with pytest.raises(UserError, match="can't be written .Read-only file system.: set LLMLAB_CACHE"):
        corpus(folder_of_texts, validation=0.2)


def test_what_killed_processes_left_goes_but_not_what_a_live_one_writes(folder_of_texts, cache_folder):
    at = cache_folder / "corpora"
    mine = corpus(folder_of_texts).folder
    old = mine / f".ngram.json.{'a' * 32}"
    old.write_text("half")
    os.utime(old, (time.time() - 3600,) * 2)
    fresh = mine / f".ngram.json.{'b' * 32}"
    fresh.write_text("being written")
    mine.joinpath("ngram.json").unlink(missing_ok=True)
    corpus(folder_of_texts).ngram((2,))
    assert (old.exists(), fresh.exists()) == (False, True)
    for name, locked in (("dead", True), ("gone", False), ("alive", True)):
        (at / f".{name}.{'c' * 32}").mkdir()
        (at / f".{name}.{'c' * 32}.old").mkdir()
        if locked:
            (at / f"{name}.lock").touch()
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True); input()",
            str(at / "alive.lock"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    corpus(folder_of_texts, validation=0.3)
    assert sorted(p.name for p in at.glob(".*")) == [f".alive.{'c' * 32}", f".alive.{'c' * 32}.old"]
    holder.communicate("\n")
    corpus(folder_of_texts, validation=0.35)
    assert not list(at.glob(".*"))


@pytest.mark.parametrize(
    "content", ["[" * 100_000, "[]", '{"manifest": 3, "sha256": "x"}', '{"manifest": {}}', "1" * 5000]
)
def test_a_manifest_of_any_content_is_damaged_not_an_error(folder_of_texts, content, capsys):
    found = corpus(folder_of_texts)
    for name in ("manifest.json", "ngram.json"):
        (found.folder / name).write_text(content)
    assert cache.read_checked(found.folder / "ngram.json") is None
    assert corpus(folder_of_texts).fingerprint == found.fingerprint
    assert "is damaged (manifest.json is missing or unreadable)" in capsys.readouterr().err
