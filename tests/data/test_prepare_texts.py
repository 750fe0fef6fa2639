import shutil
from collections import Counter

import pytest

from llmlab.config.schema import Data, Tokenizer
from llmlab.data import encoded_part, encoding, prepare, prepare_texts, text_store

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
