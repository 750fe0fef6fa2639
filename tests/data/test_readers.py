"""Every format of files, plain and compressed, and what becomes of each document in it that is broken."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile

import pytest

from llmlab.config.schema import Data, Tokenizer
from llmlab.data import prepare, readers
from llmlab.data.sources import open_source
from llmlab.errors import UserError

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

TEXTS = ["one", 'two "quoted", and a comma', "three\nlines\n\nof it", "four \u2028 naïve 漢字", "five\ttabs"]
ROWS = [{"id": i, "meta": {"n": i}, "text": t} for i, t in enumerate(TEXTS)]


def opened(path, **options):
    source = open_source(Data(source="files", path=str(path), **options))
    return [(d.name, d.text) for d in source.read(lambda *_: None)], source.account.fields()


def texts(path, **options):
    return [text for _, text in opened(path, **options)[0]]


def table(rows, **how):
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n", **how)
    writer.writerow(rows[0])
    writer.writerows(r.values() for r in rows)
    return out.getvalue().encode()


def stream(rows):
    found = pa.Table.from_pylist(rows)
    out = pa.BufferOutputStream()
    with pa.ipc.new_stream(out, found.schema) as writer:
        writer.write_table(found, max_chunksize=2)
    return out.getvalue().to_pybytes()


def ipc(rows):
    out = pa.BufferOutputStream()
    found = pa.Table.from_pylist(rows)
    with pa.ipc.new_file(out, found.schema) as writer:
        writer.write_table(found)
    return out.getvalue().to_pybytes()


def parquet(rows):
    out = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), out, row_group_size=2)
    return out.getvalue().to_pybytes()


def columns(rows):
    return json.dumps({k: [r[k] for r in rows] for k in rows[0]}).encode()


def untabbed(rows):
    return [{**r, "text": " ".join(r["text"].split()).replace('"', "'")} for r in rows]


FORMATS = {
    "a.jsonl": lambda rows: "".join(json.dumps(r) + "\n" for r in rows).encode(),
    "a.json": lambda rows: json.dumps(rows, indent=1, ensure_ascii=False).encode(),
    "columns.json": columns,
    "lines.json": lambda rows: "\n".join(map(json.dumps, rows)).encode(),
    "a.csv": table,
    "a.tsv": lambda rows: table(untabbed(rows), delimiter="\t"),
    "a.parquet": parquet,
    "a.arrow": stream,
    "a.feather": ipc,
}


def zst(data):
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as f:
        f.write(data)
    return out.getvalue().to_pybytes()


COMPRESSED = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zst}


@pytest.mark.parametrize("name", FORMATS)
def test_one_content_in_every_format(tmp_path, name):
    wanted = [r["text"] for r in (untabbed(ROWS) if name == "a.tsv" else ROWS)]
    data = FORMATS[name](ROWS)
    (tmp_path / name).write_bytes(data)
    assert texts(tmp_path / name, strict=True) == wanted
    if name not in ("a.parquet", "a.arrow", "a.feather"):
        for ending, compress in COMPRESSED.items():
            (tmp_path / (name + ending)).write_bytes(compress(data))
            assert texts(tmp_path / (name + ending), strict=True) == wanted
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n") if name == "a.jsonl" else data)
        assert texts(tmp_path / name, strict=True) == wanted


def test_a_folder_of_everything(tmp_path):
    for name, write in FORMATS.items():
        (tmp_path / name).write_bytes(write(ROWS))
    (tmp_path / "b.rst.gz").write_bytes(gzip.compress(b"Title\n=====\n"))
    (tmp_path / "c.html").write_text("<p>page")
    with zipfile.ZipFile(tmp_path / "d.zip", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("in/x.txt", "inside")
        z.writestr("in/y.csv", table(ROWS))
        z.writestr("in/z.bin", "no")
        z.writestr("__MACOSX/x.txt", "no")
    documents, read = opened(tmp_path, strict=True)
    assert len(documents) == 5 * (len(FORMATS) + 1) + 3 == read["documents"]
    assert ("b.rst.gz", "Title\n=====\n") in documents and ("c.html", "page") in documents
    assert ("d.zip/in/x.txt", "inside") in documents and ("d.zip/in/y.csv:2", "one") in documents
    assert ("a.parquet:3", TEXTS[2]) in documents
    assert {s["reason"]: s["names"] for s in read["skipped"]} == {
        "hidden files in a .zip": ["d.zip/__MACOSX/x.txt"],
        "files in a .zip of another ending": ["d.zip/in/z.bin"],
    }
    assert read["longest"] == {"name": "d.zip/in/y.csv:3", "bytes": 25} or read["longest"]["bytes"] == 25


PAGE = """<!DOCTYPE html><html><head><title>T</title><style>p {color: red}</style></head><body>
<nav><a href=x>Home</a> <a>Up</a></nav><h1>A &amp; B</h1><p>one
 two <b>bold</b>ly&nbsp;said<br>next</p><script>alert("x < y")</script>
<table><tr><td>1</td><td>2</td></tr><tr><td>3<td>4</table><pre>  kept
   as it is</pre><ul><li>a<li>b</ul><!-- no -->tail</body></html>"""


def test_the_text_of_a_page(tmp_path):
    (tmp_path / "a.html").write_text(PAGE)
    wanted = "Home Up\n\nA & B\n\none two boldly\xa0said\nnext\n\n1\t2\n3\t4\n\n  kept\n   as it is\n\na\nb\n\ntail"
    assert texts(tmp_path) == [wanted]
    (tmp_path / "a.html").write_bytes('<meta charset="iso-8859-1"><p>café “x”'.encode("cp1252"))
    assert texts(tmp_path, strict=True) == ["café “x”"]
    (tmp_path / "a.html").write_text("<div>" * 1000 + "deep")
    assert texts(tmp_path) == ["deep"]
    (tmp_path / "a.html").write_text("<!-- nothing -->")
    documents, read = opened(tmp_path)
    assert not documents and read["skipped"][0]["reason"] == "of white space only"


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        (["id", "content", "body"], "content"),
        (["body", "Content"], "Content"),
        (["title", "body"], "body"),
        (["sentence"], "sentence"),
        (["title", "sentence"], None),
        (["id", "version"], None),
        (["text", "content"], "text"),
    ],
)
def test_the_key_of_a_text_is_guessed_and_said(tmp_path, keys, found):
    rows = [{k: f"{k} {i}" for k in keys} for i in range(3)]
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        (tmp_path / name).write_bytes(FORMATS[name](rows))
        documents, read = opened(tmp_path / name)
        if found is None:
            assert not documents and read["quarantined"]["count"] == 3
            with pytest.raises(UserError, match="strings are under .*: data.field=KEY names one"):
                texts(tmp_path / name, strict=True)
            assert texts(tmp_path / name, field=keys[1], strict=True) == [r[keys[1]] for r in rows]
        else:
            assert [t for _, t in documents] == [r[found] for r in rows]
            assert read.get("fields") == (None if found == "text" else {found: 1})


@pytest.mark.parametrize(("keys", "found"), [(["id", "content"], "content"), (["sentence"], "sentence")])
def test_a_null_in_the_first_row_costs_that_row_alone(tmp_path, keys, found):
    rows = [{k: None if i == 0 else f"{k} {i}" for k in keys} for i in range(3)]
    for name in ("a.jsonl", "a.parquet"):
        (tmp_path / name).write_bytes(FORMATS[name](rows))
        documents, read = opened(tmp_path / name)
        assert ([t for _, t in documents], read["fields"]) == ([f"{found} 1", f"{found} 2"], {found: 1})
        assert read["quarantined"]["count"] == 1


@pytest.mark.parametrize(
    ("name", "content", "options", "said"),
    [
        (
            "a.jsonl",
            '{"text": "fine"}\n{',
            {},
            "a.jsonl, line 2: .*; 1 of 2 documents can't be read, with data.broken=0.1 ",
        ),
        (
            "a.jsonl",
            "{\n{\n",
            {"broken": 1.0},
            "line 1: .*; none of data.path=.*a.jsonl can be read: 2: 2 not valid JSON ",
        ),
        ("a.csv", "text\n", {}, r"there is no text in it; skipped 1: 1 files without a row \(a.csv\)$"),
        ("a.json", '[{"text": " "}]', {}, "there is no text in it, only white space$"),
    ],
)
def test_where_no_corpus_is_made_it_is_said_why(tmp_path, name, content, options, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=said):
        prepare(Data(source="files", path=str(tmp_path / name), seq_len=8, **options), Tokenizer(kind="char"))


# {name: (content, documents that are good, that are broken, that are blank)}
BAD_LINES = (
    b'{"text": "fine"}\n{"text": \n\xff\xfe\n[1]\n{"text": 5}\n{"text": "\\ud800"}\n{"text": " "}\n\n{"text": "end"}'
)
BROKEN = {
    "lines.jsonl": (BAD_LINES, 2, 5, 1),
    "cut.jsonl.gz": (lambda: gzip.compress(b'{"text": "x"}\n' * 3)[:-9], 0, 1, 0),
    "flip.bz2.jsonl.bz2": (lambda: bz2.compress(b'{"text": "x"}\n')[:-3], 0, 1, 0),
    "not.txt.xz": (b"plain", 0, 1, 0),
    "not.txt.zst": (b"plain", 0, 1, 0),
    "latin.txt": ("café".encode("latin1"), 0, 1, 0),
    "utf16.csv": ("text\nx\n".encode("utf-16"), 0, 1, 0),
    "utf16.jsonl": ('{"text": "x"}\n'.encode("utf-16"), 0, 1, 0),
    "ragged.csv": (b"text,n\na,1\nb\n\xffc,3\nd,4,5\n ,6\ne,7\n", 2, 3, 1),
    "quote.csv": (b'text,n\na,1\n"b,2\nc,3\n', 1, 1, 0),
    "twice.tsv": (b"text\ttext\na\tb\n", 0, 1, 0),
    "list.json": (b'[{"text": "a"}, 5, {"text": null}, {"text": "b"}, {"text": "c" "d"}, {"text": "e"}]', 2, 3, 0),
    "open.json": (b'[{"text": "a"}, {"text": "b', 1, 1, 0),
    "unclosed.json": (b'[{"text": "a"}', 1, 1, 0),
    "word.json": (b"hello", 0, 1, 0),
    "deep.json": (b"[" * 200_000, 0, 1, 0),
    "no.parquet": (b"PAR1 no PAR1", 0, 1, 0),
    "cut.parquet": (lambda: parquet(ROWS)[:-20], 0, 1, 0),
    "cut.arrow": (lambda: stream(ROWS)[:-150], 4, 1, 0),
    "null.parquet": (lambda: parquet([{"text": "a"}, {"text": None}, {"text": "b"}]), 2, 1, 0),
    "bytes.arrow": (lambda: stream([{"text": b"\xff"}, {"text": b"ok"}]), 1, 1, 0),
    "no.zip": (b"PK no", 0, 1, 0),
    "blank.html": (b"<p> </p>", 0, 0, 1),
    "deep.html": (b"<div>" * 20_000 + b"deep", 0, 1, 0),
    "charset.html": (b'<meta charset="utf-8"><p>\xff', 0, 1, 0),
}


@pytest.fixture
def broken(tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    for name, (content, *_) in BROKEN.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content())
    return folder


@pytest.mark.parametrize("name", BROKEN)
def test_each_broken_document_is_counted_in_its_own_kind(broken, name):
    _, good, bad, blank = BROKEN[name]
    documents, read = opened(broken / name)
    counted = read.get("quarantined", {"count": 0, "of": good + blank})
    assert (len(documents), counted["count"], sum(s["count"] for s in read["skipped"])) == (good, bad, blank)
    assert counted["of"] == good + bad + blank
    if bad:
        with pytest.raises(UserError) as e:
            opened(broken / name, strict=True)
        assert str(e.value) == counted["error"] and "\n" not in str(e.value) and name in str(e.value)


def test_five_hundred_broken_documents_are_listed_with_file_line_and_reason(broken, capsys):
    for i in range(40):
        for name in ("lines.jsonl", "ragged.csv", "latin.txt", "list.json", "null.parquet"):
            (broken / f"{i}{name}").write_bytes((broken / name).read_bytes())
    good, bad, blank = (
        sum(n[at] for n in map(BROKEN.get, BROKEN)) + 40 * sum(BROKEN[n][at] for n in ("lines.jsonl", "ragged.csv",
        "latin.txt", "list.json", "null.parquet")) for at in (1, 2, 3)
    )  # fmt: skip
    data = Data(source="files", path=str(broken), seq_len=8)
    with pytest.raises(
        UserError, match=f"; {bad} of {good + bad + blank} documents can't be read, with data.broken=0.1"
    ):
        prepare(data, Tokenizer(kind="char"))
    data.broken = 1.0
    capsys.readouterr()
    corpus = prepare(data, Tokenizer(kind="char"))
    read = corpus.manifest["read"]
    listed = [json.loads(line) for line in (corpus.folder / "quarantine.jsonl").read_text().splitlines()]
    assert read["quarantined"]["count"] == len(listed) == bad > 500
    assert read["documents"] == good == sum(corpus.manifest["documents"].values())
    assert sum(s["count"] for s in read["skipped"]) == blank
    assert all(row["reason"] and row["error"] and (broken / row["file"]).is_file() for row in listed)
    assert {
        "file": "7ragged.csv",
        "line": 3,
        "reason": "rows of another length than the header",
        "text": "b",
    }.items() <= (next(r for r in listed if r["file"] == "7ragged.csv").items())
    said = capsys.readouterr().err
    assert f"{bad} of {good + bad + blank} documents can't be read and are left out: " in said
    assert str(corpus.folder / "quarantine.jsonl") in said
    for options, limit in (({"strict": True}, "data.strict=true"), ({"broken": 0.2}, "data.broken=0.2")):
        # The corpus is in the cache, and was allowed more.
        with pytest.raises(UserError, match=limit):
            prepare(Data(source="files", path=str(broken), seq_len=8, **options), Tokenizer(kind="char"))


def test_a_json_list_is_read_without_being_held(tmp_path, monkeypatch):
    monkeypatch.setattr("llmlab.data.readers.json_rows.CHUNK", 7)
    rows = [{"text": "x" * i, "n": -123456 - i, "a": [True, None, "\\u12ab\n"]} for i in range(60)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert texts(tmp_path, strict=True) == [r["text"] for r in rows[1:]]
    monkeypatch.setattr("llmlab.data.readers.json_rows.LONGEST", 50)
    (tmp_path / "a.json").write_text(json.dumps([{"text": "y" * 200}]))
    assert opened(tmp_path)[1]["quarantined"]["reasons"][0]["reason"] == "too long"


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".csv"])
def test_a_compressed_file_of_endless_text_is_bounded(tmp_path, monkeypatch, ending):
    for module in ("texts", "item", "tables"):
        monkeypatch.setattr(f"llmlab.data.readers.{module}.LONGEST", 1000)
    (tmp_path / f"a{ending}.gz").write_bytes(gzip.compress(b"text" + b"x" * 50_000))
    documents, read = opened(tmp_path)
    assert not documents and [r["reason"] for r in read["quarantined"]["reasons"]] == ["too long"]
    (tmp_path / f"a{ending}.gz").unlink()
    (tmp_path / f"a{ending}").write_bytes(b"x" * 50_000)
    assert readers.format_of(f"a{ending}", readers.FORMATS)[1] == ""
    assert (ending != ".txt") or texts(tmp_path) == ["x" * 50_000]


def test_a_missing_package_is_said_in_a_line(tmp_path, monkeypatch):
    for name, package in (("a.parquet", "pyarrow"), ("a.txt.zst", "pyarrow"), ("a.html", "lxml.etree")):
        (tmp_path / name).write_bytes(b"<p>x")
        with monkeypatch.context() as m:
            m.setitem(__import__("sys").modules, package, None)
            with pytest.raises(UserError, match=r"is missing: pip install 'llmlab\[(tables|html)\]'"):
                texts(tmp_path / name)


def test_a_text_is_on_one_side_whatever_its_space_and_case(tmp_path, capsys):
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [f"caf\u00e9 number {i} of it" for i in range(40)]
    twins = [r.upper().replace(" ", " \n ").replace("\u00c9", "E\u0301") for r in rows]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in rows + twins))
    data = Data(source="files", path=str(folder), seq_len=8, validation=0.3)
    corpus = prepare(data, Tokenizer(kind="char"))
    eos = corpus.tokenizer.special["eos"]

    def found(part):
        held = getattr(corpus, part).tokens.tolist()
        runs = "".join(corpus.tokenizer.decode([i]) if i != eos else "|" for i in held).split("|")[:-1]
        return {" ".join(t.casefold().split()).replace("e\u0301", "\u00e9") for t in runs}, len(runs)

    (train, n), (validation, m) = found("train"), found("validation")
    assert not train & validation and n == 2 * len(train) and m == 2 * len(validation) and n + m == 80 and m
    card = (corpus.folder / "README.md").read_text()
    assert f"| train | {n} |" in card and corpus.fingerprint in card and "a.jsonl:" in card
    data.split = "position"
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in [*rows, *twins[:3], "new " * 9]))
    capsys.readouterr()
    corpus = prepare(data, Tokenizer(kind="char"))
    assert "3 held-out documents are left out: their text is in the training part too" in capsys.readouterr().err
    (folder / "a.jsonl").unlink()
    records = [{"text": t, "label": i % 2} for i, t in enumerate([*rows, *twins])]
    (folder / "r.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    corpus = prepare(
        Data(source="files", path=str(folder), validation=0.3), Tokenizer(vocab_size=300), reads="labelled"
    )
    assert all(n % 2 == 0 for n in corpus.manifest["documents"].values())


@pytest.mark.slow
def test_a_folder_that_datasets_has_saved(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"id": i, "content": f"text {i}", "label": i % 2} for i in range(6)]
    whole = datasets.Dataset.from_list(rows)
    splits = datasets.DatasetDict({"train": whole.select([4, 1, 0]), "test": whole})
    splits.save_to_disk(str(tmp_path / "d"))
    (tmp_path / "d" / "train" / "cache-1.arrow").write_bytes(b"no")
    documents, read = opened(tmp_path / "d", strict=True)
    assert [t for _, t in documents] == ["text 4", "text 1", "text 0"] and read["fields"] == {"content": 1}
    assert {s["reason"]: s["count"] for s in read["skipped"]} == {
        "another split of a saved data set": 1,
        "no rows of a saved data set": 4,
    }
    assert texts(tmp_path / "d" / "test") == whole["content"][:]
    whole.save_to_disk(str(tmp_path / "shards"), num_shards=3)
    assert texts(tmp_path / "shards") == whole["content"][:]
    (tmp_path / "shards" / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(UserError, match="data-00001-of-00003.arrow, which state.json names, is not there"):
        texts(tmp_path / "shards")
    datasets.DatasetDict({"a": whole, "b": whole}).save_to_disk(str(tmp_path / "ab"))
    with pytest.raises(UserError, match="of the splits a, b; name the folder of one"):
        texts(tmp_path / "ab")
