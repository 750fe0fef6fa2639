import importlib.util
import inspect
import json
import sys
from pathlib import Path

import pytest

from llmlab.config.schema import Data
from llmlab.data.sources import open_source
from llmlab.errors import UserError


def read(**options):
    return list(open_source(Data(**options)).read(lambda done, total: None))


def files(path):
    return read(source="files", path=str(path), strict=True)


@pytest.fixture(scope="module")
def docs():
    before = set(sys.modules)
    found = read(source="python_docs")
    assert not {m for m in set(sys.modules) - before if m.split(".")[0] in ("antigravity", "this", "tkinter", "turtle")}
    return found


def test_python_docs_have_the_topics_and_the_docstrings(docs):
    texts = {d.name: d.text for d in docs}
    assert len(texts) == len(docs)
    from pydoc_data.topics import topics

    assert {d.text for d in docs if d.name.startswith("topics/")} == set(topics.values())
    import textwrap as module

    for thing in (module, module.wrap, module.TextWrapper, module.TextWrapper.fill):
        assert inspect.getdoc(thing) in texts["textwrap"]
    assert not [name for name in texts if name.split(".")[0] in ("test", "site-packages") or ".test." in name]
    assert 1_500_000 < sum(map(len, texts.values())) < 4_000_000


@pytest.mark.slow
def test_python_docs_are_the_same_each_time(docs):
    assert read(source="python_docs") == docs


def test_python_code_has_the_sources_without_tests():
    found = {d.name: d.text for d in read(source="python_code")}
    origin = importlib.util.find_spec("textwrap").origin
    assert found["textwrap.py"] == Path(origin).read_bytes().decode()
    assert len(set(found.values())) == len(found) > 400
    assert not [n for n in found if {"test", "tests", "site-packages"} & set(n.split("/")) or "_sysconfigdata" in n]


def test_sums_are_right_and_of_each_kind_of_record():
    texts = read(source="arithmetic")
    assert all(sum(map(int, left.split("+"))) == int(right) for left, right in (d.text.split("=") for d in texts))
    assert len({d.text for d in texts}) == len(texts) > 500
    prompts = [json.loads(d.text) for d in open_source(Data(source="arithmetic"), "prompts").read(lambda *_: None)]
    assert [p["prompt"] + p["rest"]["answer"] for p in prompts] == [d.text for d in texts]
    ranked = [json.loads(d.text) for d in open_source(Data(source="arithmetic"), "preferences").read(lambda *_: None)]
    assert all(r["answers"][0] == p["rest"]["answer"] != r["answers"][1] for r, p in zip(ranked, prompts, strict=True))
    classes = [json.loads(d.text) for d in open_source(Data(source="arithmetic"), "labelled").read(lambda *_: None)]
    assert [c["text"] + c["label"] for c in classes] == [d.text for d in texts]
    with pytest.raises(UserError, match="data=arithmetic has sums, which are read as prompts, .* not as choices"):
        open_source(Data(source="arithmetic"), "choices")


def test_files_of_all_kinds_in_order(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "b.TXT").write_bytes("naïve\r\nline\n".encode())
    (tmp_path / "a.md").write_bytes(b"\xef\xbb\xbf# Title")
    (tmp_path / "sub" / "c.jsonl").write_text(
        '{"text": "one\\u2028"}\n\n{"text": "two\u2028", "id": 3}\n{"text": " "}\n'
    )
    (tmp_path / "empty.txt").touch()
    (tmp_path / "other.pdf").write_text("1,2")
    (tmp_path / ".git" / "d.txt").write_text("no")
    assert files(tmp_path) == [
        ("a.md", "# Title"),
        ("b.TXT", "naïve\r\nline\n"),
        ("sub/c.jsonl:1", "one\u2028"),
        ("sub/c.jsonl:3", "two\u2028"),
    ]
    assert files(tmp_path / "b.TXT") == [("b.TXT", "naïve\r\nline\n")]


def test_the_stamp_follows_the_files(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one")
    cfg = Data(source="files", path=str(tmp_path))
    first = open_source(cfg).stamp
    assert open_source(cfg).stamp == first
    file.write_text("two")
    assert open_source(cfg).stamp != first


BAD = {
    "not there": (None, "there is no such file or folder"),
    "empty.txt": (b"", "the file is empty"),
    "latin.txt": (b"caf\xe9 au lait", "latin.txt is not UTF-8 .byte 3.; convert it"),
    "a.pdf": (b"%PDF", "must end in one of .txt, .md, .jsonl"),
    "a.jsonl": (b'{"text": "ok"}\n\n{"text": \n', "a.jsonl, line 3: not valid JSON"),
    "b.jsonl": (b'{"text": "ok"}\n{"txt": "?"}\n', 'b.jsonl, line 2: needs an object with a string under "text"'),
    "c.jsonl": (b"[1, 2]\n", "c.jsonl, line 1: needs an object"),
    "d.jsonl": (b'{"text": 5}\n', "d.jsonl, line 1: needs an object"),
    "e.jsonl": (b'{"text": "\\ud800"}\n', "e.jsonl, line 1: .*surrogate"),
}


@pytest.mark.parametrize("name", BAD)
def test_unreadable_files(tmp_path, name):
    content, message = BAD[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        files(tmp_path / name)
    assert "data.path" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folders_without_text(tmp_path):
    with pytest.raises(UserError, match="has no file that ends in"):
        files(tmp_path)
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match="all its files are empty"):
        files(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"source": "wikipedia"},
            "data.source=wikipedia: .*valid: python_docs, python_code, arithmetic, reasoning_gym, files",
        ),
        ({"source": "files"}, "data.path: data=files needs"),
        ({"source": "python_docs", "path": "x"}, "data.path=x has no effect"),
    ],
)
def test_wrong_choices(options, message):
    with pytest.raises(UserError, match=message):
        read(**options)
