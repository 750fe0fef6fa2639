"""Text as it is told: whole characters, nothing of a stop string; prompts from files; the command on a run."""

import json

import pytest

from llmlab.commands import generate as command
from llmlab.commands.cli import run
from llmlab.commands.generate import read_prompts
from llmlab.commands.teller import Teller
from llmlab.errors import UserError


class Bytes:
    """A tokenizer of bytes: the worst case, a character of four tokens."""

    def decode(self, ids):
        return bytes(ids).decode("utf-8", errors="replace")


def told(text, *stop):
    teller = Teller(Bytes(), stop)
    pieces = []
    for token in text.encode():
        pieces.append(teller.add(token))
        if teller.stopped:
            break
    return [p for p in [*pieces, teller.rest()] if p], teller.stopped


@pytest.mark.parametrize(
    ("text", "stop", "want", "stopped"),
    [
        ("one two", (), "one two", False),
        ("one\n\ntwo", ("\n\n",), "one", True),
        ("one\ntwo\n", ("\n\n",), "one\ntwo\n", False),
        ("abcabd", ("abd",), "abc", True),
        ("aaaaab", ("aab",), "aaa", True),
        ("x ENDx", ("EN", "END"), "x ", True),
        ("STOP", ("STOP",), "", True),
        ("stop at last: STO", ("STOP",), "stop at last: STO", False),
        ("naïve 🙂 café", ("🙃",), "naïve 🙂 café", False),
        ("one 🙂 two", ("🙂",), "one ", True),
        ("later then earlier", ("earlier", "then"), "later ", True),
    ],
)
def test_told(text, stop, want, stopped):
    pieces, ended = told(text, *stop)
    assert "".join(pieces) == want and ended == stopped
    assert not any("\ufffd" in p for p in pieces)


def test_nothing_of_a_stop_string_is_told_before_it_is_known():
    teller = Teller(Bytes(), ["<end>"])
    said = [teller.add(t) for t in b"a<en<end>b"]
    assert said == ["a", "", "", "", "<en", "", "", "", "", ""] and teller.stopped and teller.rest() == ""


def test_half_a_character_at_the_end_is_told_as_it_is():
    teller = Teller(Bytes())
    assert [teller.add(t) for t in "a🙂".encode()[:3]] == ["a", "", ""]
    assert teller.rest() == "\ufffd"


def test_prompts_of_a_file(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffone\n\n two \r\n", encoding="utf-8")
    assert read_prompts(str(tmp_path / "a.txt")) == ["one", " two "]
    (tmp_path / "a.jsonl").write_text('{"prompt": "x\\n"}\n\n{"prompt": "\u2028", "n": 1}\n', encoding="utf-8")
    assert read_prompts(str(tmp_path / "a.jsonl")) == ["x\n", "\u2028"]
    (tmp_path / "b.jsonl").write_bytes(b'{"prompt": "one"}\r\xef\xbb\xbf{"prompt": "two"}\r\n')
    assert read_prompts(str(tmp_path / "b.jsonl")) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"ok\nna\xefve", r"prompts=a\.txt is not UTF-8 \(byte 5\)"),
        ("a.txt", b"\n \n", r"prompts=a\.txt: there is no prompt in it"),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": 1}\n', r"prompts=a\.jsonl, line 2: needs an object with a string"),
        ("a.jsonl", b'{"prompt": ', r"prompts=a\.jsonl, line 1: not valid JSON"),
        (None, b"", r"prompts=a\.txt can't be read: No such file"),
    ],
)
def test_files_that_hold_no_prompts(tmp_path, monkeypatch, name, content, said):
    monkeypatch.chdir(tmp_path)
    if name:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_prompts(name or "a.txt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generate")
    (folder / "text.txt").write_text(
        "It was a bright cold day in April, and the clocks were striking thirteen.\n\n" * 60
    )
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    patch.setenv("LLMLAB_CACHE", str(folder / "cache"))
    small = ["model.dim=32", "model.n_layers=1", "data.seq_len=32", "train.batch_size=4", "train.sample=false"]
    argv = [
        "train",
        "data=files",
        "data.path=text.txt",
        "tokenizer=char",
        *small,
        "trainer.max_steps=2",
        "hydra.run.dir=run",
    ]
    assert run(argv) == 0
    yield folder
    patch.undo()


def lines(capsys, *argv):
    capsys.readouterr()
    assert command.main(["run=run", "max_new=12", "temperature=2", *argv]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_batch_is_its_prompts_alone(trained, capsys):
    prompts = ["It was", "c", "striking thirteen", "a\nb"]
    (trained / "p.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    got = lines(capsys, "prompts=p.jsonl", "num=2", "seed=4", "batch_size=3", "--json")
    assert [(s["prompt"], s["seed"]) for s in got] == [(p, seed) for p in prompts for seed in (4, 5)]
    assert got[3] == lines(capsys, "prompt=c", "seed=5", "--json")[0]
    assert got[4] == lines(capsys, "prompt=striking thirteen", "seed=4", "--json")[0]
    assert {s["ended"] for s in got} == {"length"} and all(len(s["text"]) == 12 for s in got)


def test_stop_strings(trained, capsys):
    free = lines(capsys, "prompt=It", "--json")[0]["text"]
    stop = free[5:7]
    (sample,) = lines(capsys, "prompt=It", f"stop={stop}", "stop=\\n\\n\\n", "--json")
    assert (sample["text"], sample["ended"]) == (free[: free.index(stop)], "stop")
    command.main(["run=run", "max_new=12", "temperature=2", "prompt=It", f"stop={stop}"])
    assert capsys.readouterr().out == "It" + free[: free.index(stop)] + "\n"


def test_several_samples_are_told_apart(trained, capsys):
    command.main(["run=run", "max_new=3", "prompt=It", "num=2"])
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "--- 1 of 2, seed 1" and out[1].startswith("It") and "--- 2 of 2, seed 2" in out


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["max_new=0"], "max_new=0 must be at least 1"),
        (["num=0"], "num=0 must be at least 1"),
        (["stop="], "stop= must name a text"),
        (["prompts=x.txt"], "prompt and prompts can't both be given"),
        (["min_p=2"], "min_p=2.0 must be at least 0 and at most 1"),
        (["repetition_penalty=much"], "repetition_penalty=much: must be a number"),
        (["repetition_penalty=0"], r"repetition_penalty=0\.0 must be above 0"),
        (["temprature=1"], "temprature: there is no such key of llmlab generate; did you mean temperature"),
    ],
)
def test_refused(trained, typed, said):
    with pytest.raises(UserError, match=said):
        command.main(["run=run", "prompt=It", *typed])


def test_a_prompt_that_the_tokenizer_does_not_know_is_named(trained):
    (trained / "q.txt").write_text("It\n€\n")
    with pytest.raises(UserError, match="prompt 2 of 2: the text has '€'"):
        command.main(["run=run", "prompts=q.txt"])
