import hashlib
import json
import os
import shutil
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from llmlab.config.schema import Data, Tokenizer
from llmlab.data import cache, encoded_part, encoding, prepare, prepare_texts, text_store
from llmlab.runs import text as run_text

BPE = Tokenizer(vocab_size=320)


def corpus(path, tokenizer=BPE, **options):
    return prepare(Data(source="files", path=str(path), seq_len=16, **options), tokenizer)


def files_of(found):
    return {p.name: p.read_bytes() for p in found.folder.iterdir() if p.name != "manifest.json"}


@pytest.mark.parametrize("options", [{}, {"split": "position", "validation": 0.3}])
def test_groups_of_documents_are_as_one(folder_of_texts, cache_folder, monkeypatch, options):
    one = files_of(corpus(folder_of_texts, **options))
    shutil.rmtree(cache_folder)
    monkeypatch.setattr(encoded_part, "GROUP", 300)
    assert files_of(corpus(folder_of_texts, **options)) == one


def stopping(name, work, stop, done):
    """`work`, counted and stopped as by Ctrl-C at the time that `stop` says."""

    def counted(*args, **options):
        done[name] += 1
        if stop == {"name": name, "at": done[name]}:
            raise KeyboardInterrupt
        return work(*args, **options)

    return counted


@pytest.mark.parametrize("tokenizer", [BPE, Tokenizer(kind="char")])
def test_what_was_stopped_goes_on_where_it_was(folder_of_texts, cache_folder, monkeypatch, capsys, tokenizer):
    monkeypatch.setattr(encoded_part, "GROUP", 300)
    steps = {
        "read": (text_store.TextStore, "write"),
        "learn": (prepare_texts, "make_tokenizer"),
        "encode": (encoding, "encode"),
    }
    stop, done = {}, Counter()
    for name, (owner, attribute) in steps.items():
        monkeypatch.setattr(owner, attribute, stopping(name, getattr(owner, attribute), stop, done))
    whole, once = files_of(corpus(folder_of_texts, tokenizer)), dict(done)
    shutil.rmtree(cache_folder)
    done.clear()
    for name, at in (("read", 1), ("learn", 1), ("encode", 3), ("encode", 5)):
        stop.update({"name": name, "at": at})
        with pytest.raises(KeyboardInterrupt):
            corpus(folder_of_texts, tokenizer)
    assert files_of(corpus(folder_of_texts, tokenizer)) == whole
    # Once more for each time that it was stopped: nothing that was done is done again.
    assert done == {"read": once["read"] + 1, "learn": once["learn"] + 1, "encode": once["encode"] + 2}
    assert "going on with a preparation that was stopped: its " in capsys.readouterr().err


def test_a_kill_at_any_file_leaves_what_can_be_gone_on_with(tmp_path, cache_folder, monkeypatch):
    """At each time that a file is opened, deleted or renamed: the same corpus afterwards, and nothing else in its folder."""
    monkeypatch.setattr(encoded_part, "GROUP", 600)
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.txt").write_text(f"document {i}, naïve café " * 10, encoding="utf-8")
    (folder / "rows.jsonl").write_text('{"text": "a row"}\n{broken\n', encoding="utf-8")
    work, done = {"name": "work", "at": None}, Counter()
    for owner, name in ((Path, "open"), (Path, "unlink"), (os, "rename"), (os, "replace"), (os, "fsync")):
        monkeypatch.setattr(owner, name, stopping("work", getattr(owner, name), work, done))

    def made():
        found = corpus(folder, Tokenizer(kind="char"), split="position", broken=0.5)
        return files_of(found), cache.check(found.folder)

    whole, calls = made(), done["work"]
    arrays = {f"{part}{of}.npy" for part in ("train", "validation") for of in ("", "_starts")}
    beside = {"README.md", "documents.txt", "quarantine.jsonl", "special.json", "tokenizer.json"}
    assert set(whole[0]) == {*arrays, *beside, "validation_sizes.npy"}
    for at in range(1, calls + 1):
        shutil.rmtree(cache_folder)
        done.clear()
        work["at"] = at
        with suppress(KeyboardInterrupt):
            made()
        work["at"] = None
        assert made() == whole
        assert not [p.name for p in (cache_folder / "corpora").iterdir() if p.name.startswith(".")]


def test_a_file_system_without_locks_has_a_folder_for_each_process(folder_of_texts, monkeypatch):
    """Where two may make the same at once neither goes on with the other's files."""

    def refuse(*of):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(cache.fcntl, "lockf", refuse)
    seen, write = [], text_store.TextStore.write
    monkeypatch.setattr(
        text_store.TextStore, "write", lambda folder, *rest: seen.append(folder.name) or write(folder, *rest)
    )
    corpus(folder_of_texts)
    assert not seen[0].endswith(cache.UNFINISHED)


@pytest.mark.parametrize("reads", ["text", "labelled"])
def test_a_run_goes_on_by_the_rules_that_it_began_with(tmp_path, reads):
    """A record without the rules is of a time when each text was held out by itself, and fewer formats were read."""
    folder, home = tmp_path / "texts", tmp_path / "run"
    folder.mkdir()
    home.mkdir()
    words = [w for i in range(20) for w in (f"a text of number {i}", f"A TEXT of number {i}")]
    rows = [{"text": w, **({"label": w[-1]} if reads != "text" else {})} for w in words]
    (folder / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    data = Data(source="files", path=str(folder), seq_len=4, validation=0.3)
    keys = words if reads == "text" else [json.dumps({"text": w}, sort_keys=True) for w in words]
    held_out = [int.from_bytes(hashlib.sha256(k.encode()).digest()[:8], "big") / 2**64 < 0.3 for k in keys]
    assert held_out[::2] != held_out[1::2]
    (folder / "b.parquet").write_bytes(b"no table: not read by those rules")
    found = prepare(data, Tokenizer(kind="char"), reads=reads, rules=1)
    assert found.manifest["documents"] == {"train": held_out.count(False), "validation": held_out.count(True)}
    for name in ("tokenizer.json", "special.json"):
        shutil.copy(found.folder / name, home)
    record = {"data": {"fingerprint": found.fingerprint}}
    again = run_text.corpus(run_text.Trained(home, data, Tokenizer(kind="char"), (), record, reads), "{text}")
    assert again.manifest["tokens"] == found.manifest["tokens"] and again.manifest["rules"] == 1
    (folder / "b.parquet").unlink()
    now = prepare(data, Tokenizer(kind="char"), reads=reads)
    assert now.manifest["rules"] == 2 and all(n % 2 == 0 for n in now.manifest["documents"].values())
