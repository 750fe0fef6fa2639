"""Files and folders of the user's: each is read, named as skipped with its reason, or an error of one line."""

import json
import os
import socket

import pytest

from llmlab.config.schema import Data, Tokenizer
from llmlab.data import account, prepare, readers
from llmlab.data.sources import open_source
from llmlab.errors import UserError


def opened(path, **options):
    source = open_source(Data(source="files", path=str(path), **{"strict": True, **options}))
    return [(d.name, d.text) for d in source.read(lambda done, total: None)], source.account.fields()


def skipped(path, **options):
    return {s["reason"]: (s["count"], s["names"]) for s in opened(path, **options)[1]["skipped"]}


def refusal(path, **options):
    with pytest.raises(UserError) as caught:
        opened(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.txt").write_text("x")
    return folder


def test_what_is_not_text_is_counted_by_its_reason(folder):
    for name in ("b.tar.gz", "c.doc", "d.pdf", "e.pdf", "README"):
        (folder / name).write_text("?")
    (folder / "f.txt").touch()
    (folder / "g.txt").write_text(" \n")
    (folder / "h.jsonl").write_text('{"text": " "}\n{"text": "y"}\n')
    (folder / ".git").mkdir()
    os.mkfifo(folder / "pipe.txt")  # opening it would wait for ever
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(folder / "s.txt"))
    documents, read = opened(folder)
    assert documents == [("a.txt", "x"), ("h.jsonl:2", "y")]
    assert (read["files"], read["documents"], read["bytes"]) == (3, 2, 2)
    assert read["skipped"] == [
        {"reason": "hidden", "count": 1, "names": [".git"]},
        {
            "reason": "of another ending",
            "count": 5,
            "names": ["README", "b.tar.gz", "c.doc", "d.pdf", "e.pdf"],
            "endings": {".pdf": 2, "none": 1, ".gz": 1, ".doc": 1},
        },
        {"reason": "empty", "count": 1, "names": ["f.txt"]},
        {"reason": "no ordinary file", "count": 2, "names": ["pipe.txt: a named pipe", "s.txt: a socket"]},
        {"reason": "of white space only", "count": 1, "names": ["g.txt"]},
        {"reason": "documents of white space only", "count": 1, "names": ["h.jsonl:1"]},
    ]
    assert (
        account.reasons(read["skipped"][1:3]) == "6: 5 of another ending (.pdf 2, none 1, .gz 1 ...), 1 empty (f.txt)"
    )
    assert account.line("../text", read) == "3 files, 2 documents, 2 bytes of ../text"
    assert [account.size(n) for n in (1, 999, 1000, 1_234_567, 5e9)] == [
        "1 byte",
        "999 bytes",
        "1.0 kB",
        "1.2 MB",
        "5.0 GB",
    ]


def test_links_are_followed_and_each_real_file_is_read_once(folder, tmp_path):
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "b.txt").write_text("b")
    (outside / "deep" / "c.txt").write_text("c")
    (outside / "deep" / "back").symlink_to(outside)
    (folder / "sub").mkdir()
    (folder / "sub" / "d.txt").write_text("d")
    (folder / "link").symlink_to(outside)
    (folder / "again").symlink_to(folder / "sub")
    (folder / "up").symlink_to("../..")
    (folder / "b.txt").symlink_to(outside / "b.txt")
    (folder / "copy.txt").symlink_to("a.txt")
    documents, read = opened(folder)
    assert documents == [("a.txt", "x"), ("link/b.txt", "b"), ("link/deep/c.txt", "c"), ("sub/d.txt", "d")]
    assert {s["reason"]: sorted(s["names"]) for s in read["skipped"]} == {
        "read already under another name": ["again", "b.txt", "copy.txt", "link/deep/back"],
        "a link to a folder that holds this one": ["up"],
    }


def test_links_to_nothing(folder):
    (folder / "old.lock").symlink_to("none")
    assert skipped(folder) == {"a link to nothing": (1, ["old.lock"])}
    (folder / "gone.txt").symlink_to("none.txt")
    assert "gone.txt is a link to none.txt, which is not there" in refusal(folder)
    (folder / "gone.txt").unlink()
    (folder / "more").symlink_to("more")
    assert "more is a link that leads back to itself" in refusal(folder)
    assert "more is a link that leads back to itself" in refusal(folder / "more")
    (folder / "there").symlink_to("nowhere")
    assert "there is a link to nowhere, which is not there" in refusal(folder / "there")
    os.mkfifo(folder / "p.txt")
    assert "p.txt is a named pipe; give a file or a folder" in refusal(folder / "p.txt")
    assert "/dev/null is a device" in refusal("/dev/null")


def test_folders_that_can_not_be_read(folder, monkeypatch):
    for name in ("closed", "open"):
        (folder / name).mkdir()
        (folder / name / "b.txt").write_text(name)
    real = os.scandir

    def scandir(path):
        if str(path).endswith(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    closed = "closed"
    monkeypatch.setattr(os, "scandir", scandir)
    assert opened(folder)[0] == [("a.txt", "x"), ("open/b.txt", "open")]
    assert skipped(folder) == {"a folder that can't be read": (1, ["closed: Permission denied"])}
    closed = "data"
    assert refusal(folder).endswith("can't be read (Permission denied)")


def test_files_that_change_or_vanish_while_they_are_read(folder, monkeypatch):
    for name in ("b.txt", "c.jsonl"):
        (folder / name).write_text('{"text": "y"}\n')
    source = open_source(Data(source="files", path=str(folder), strict=True))
    for change, said in (
        (lambda: (folder / "b.txt").write_text("longer than before"), r"b\.txt changed while it was read"),
        (lambda: (folder / "b.txt").unlink(), r"b\.txt can't be read \(No such file"),
    ):
        change()
        with pytest.raises(UserError, match=said):
            list(source.read(lambda done, total: None))
    (folder / "b.txt").symlink_to("a.txt")
    (folder / "c.jsonl").unlink()
    closed = lambda path: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))  # noqa: E731
    monkeypatch.setitem(readers.COMPRESSIONS, "", closed)
    assert "a.txt can't be read (Permission denied)" in refusal(folder)


def test_names_that_are_no_utf8_or_no_line(folder):
    name = os.fsdecode(b"caf\xe9.txt")
    (folder / name).write_text("y")
    (folder / "two\nlines.jsonl").write_text("{}\n")
    message = refusal(folder)
    assert "two\\nlines.jsonl, line 1" in message
    (folder / "two\nlines.jsonl").write_text('{"text": "z"}\n')
    assert opened(folder)[0][1:] == [(name, "y"), ("two\nlines.jsonl:1", "z")]
    (folder / name).write_bytes(b"\xff\xfex\0")
    message = refusal(folder)
    assert "caf\\udce9.txt is not UTF-8 (byte 0); convert it, for example: iconv -f utf-16" in message


LINES = {
    "deep": ("[" * 200_000 + "]" * 200_000, "nested more than 100 levels deep"),
    "digits": ('{"text": "x", "id": ' + "1" * 5000 + "}", "holds a number of too many digits"),
    "two": ('{"text": "x"}{"text": "y"}', "not valid JSON (Extra data at column 14)"),
    "null": ('{"text": null, "body": "x"}', 'a string under "text"; strings are under body: data.field=KEY names one'),
    "number": ('{"text": 5}', 'a string under "text", but it is 5; no key of it holds one'),
    "nested": ('{"meta": {"title": "x"}, "id": 1}', "strings are under meta.title: data.field=KEY"),
    "list": ('[{"text": "x"}]', 'needs an object with a string under "text", but is a list'),
}


@pytest.mark.parametrize("name", LINES)
def test_lines_that_are_no_documents(folder, name):
    line, said = LINES[name]
    (folder / "l.jsonl").write_text('{"text": "good"}\n' + line + "\n")
    message = refusal(folder)
    assert "l.jsonl, line 2: " in message and said in message and len(message) < 400


def test_line_ends_and_byte_order_marks(folder):
    file = folder / "l.jsonl"
    rows = [{"text": "a\u2028b\x85c"}, {"text": "d\ne"}]
    for end in ("\n", "\r\n", "\r"):
        for mark in ("", "\ufeff"):
            file.write_bytes("".join(mark + json.dumps(r, ensure_ascii=False) + end for r in rows).encode())
            assert opened(file)[0] == [("l.jsonl:1", "a\u2028b\x85c"), ("l.jsonl:2", "d\ne")]


def test_another_key_than_text(folder):
    file = folder / "l.jsonl"
    file.write_text('{"a": {"b": "inside", "c": "other"}, "d.e": "dotted"}\n')
    assert opened(file, field="a.b")[0] == [("l.jsonl:1", "inside")]
    assert opened(file, field="d.e")[0] == [("l.jsonl:1", "dotted")]
    assert 'under "a.x"; strings are under a.b, a.c, d.e' in refusal(file, field="a.x")
    assert opened(folder, field="a.c")[0] == [("a.txt", "x"), ("l.jsonl:1", "other")]
    assert "data.field=a: it is a key of .jsonl files" in refusal(folder / "a.txt", field="a")
    stamps = {json.dumps(open_source(Data(source="files", path=str(file), field=f)).stamp) for f in ("a.b", "a.c")}
    assert len(stamps) == 2


def test_a_corpus_says_what_was_left_out_each_time(folder, capsys):
    for i in range(8):
        (folder / f"{i}.txt").write_text(f"{i} some words of a text " * 20)
    (folder / "b.pdf").write_text("1,2")
    (folder / "c.txt").write_text(" ")

    def corpus():
        return prepare(Data(source="files", path=str(folder), seq_len=8, max_documents=8), Tokenizer(kind="char"))

    first = corpus()
    said = capsys.readouterr().err
    assert said == (
        f"llmlab: data.path={folder}: skipped 3: 1 of another ending (.pdf 1), 2 behind the last of "
        "data.max_documents (a.txt, c.txt)\n"
    )
    assert corpus().manifest == first.manifest
    assert capsys.readouterr().err == said
    (folder / "d.doc").write_text("?")  # read anew, but no reason to make the corpus anew
    second = corpus()
    assert second.folder == first.folder
    assert "2 of another ending (.pdf 1, .doc 1)" in capsys.readouterr().err
    assert second.manifest["read"]["documents"] == 8 == sum(second.manifest["documents"].values())
    assert second.manifest["read"]["bytes"] == sum(second.manifest["bytes"].values())


def test_a_path_that_no_file_can_have():
    with pytest.raises(UserError, match=r"data.path=a\\x00b has a NUL character"):
        open_source(Data(source="files", path="a\0b"))
