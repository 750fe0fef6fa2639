"""Files from outside: each thing that can be wrong with one is a line that names the file."""

from __future__ import annotations

import json
import os
from typing import Literal, NotRequired, TypedDict

import pytest

from llmlab.errors import UserError
from llmlab.json_files import DEEPEST, check_shape, read_json, read_yaml


class Shape(TypedDict):
    kind: Literal["bpe", "char"]
    special: dict[str, int]
    rate: NotRequired[float | None]
    parts: NotRequired[list[str]]


GOOD = '{"kind": "bpe", "special": {"eos": 3}, "rate": 1, "more": [1]}'


def test_what_fits_comes_back(tmp_path):
    (tmp_path / "a.json").write_text("\ufeff" + GOOD)
    assert read_json(tmp_path / "a.json", Shape)["special"] == {"eos": 3}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not valid JSON"),
        ("null", "must be an object, but is None"),
        ("[1]", "must be an object, but is a list [1]"),
        ('{"kind": "bpe"}', "special is missing"),
        ('{"kind": "bp", "special": {}}', "kind must be one of bpe, char, but is 'bp'"),
        ('{"kind": ["bpe"], "special": {}}', "kind must be one of bpe, char, but is a list ['bpe']"),
        ('{"kind": "bpe", "special": {"eos": "3"}}', "special.eos must be a whole number, but is '3'"),
        ('{"kind": "bpe", "special": {"eos": true}}', "special.eos must be a whole number, but is True"),
        ('{"kind": "bpe", "special": {"eos": 1.5}}', "special.eos must be a whole number, but is 1.5"),
        ('{"kind": "bpe", "special": {}, "rate": "x"}', "rate must be a number, but is 'x'"),
        ('{"kind": "bpe", "special": {}, "parts": ["a", 2]}', "parts[1] must be a text, but is 2"),
        ('{"kind": "bpe", "special": {"eos": %s}}' % ("9" * 5000), "too many digits"),
        ('{"kind": "bpe", "special": {"eos": %s}}' % ("9" * 400), "a whole number of 400 digits"),
        ('{"more": %s}' % ("[" * 50_000 + "]" * 50_000), "nested more than"),
        ('{"more": %s}' % ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1)), "nested more than"),
        ('{"more": "\\ud800"}', "surrogate"),
    ],
)
def test_json_that_does_not_fit(tmp_path, text, said):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError) as e:
        read_json(tmp_path / "a.json", Shape)
    assert str(e.value).startswith(str(tmp_path / "a.json")) and said in str(e.value), e.value
    assert len(str(e.value)) < 300


def test_the_number_by_which_transformers_says_no_limit(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"model_max_length": int(1e30)}))
    assert read_json(tmp_path / "a.json")["model_max_length"] == int(1e30)
    (tmp_path / "a.json").write_text(json.dumps({"model_max_length": {"eos": int(1e30)}}))
    with pytest.raises(UserError, match="31 digits"):
        read_json(tmp_path / "a.json")


def test_files_that_are_none(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "bytes").write_bytes(b"\xff{}")
    (tmp_path / "long").write_text(GOOD)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    said = {"pipe": "no ordinary file", "bytes": "not UTF-8", ".": "is a folder", "loop": "can't be read"}
    for name, words in said.items():
        with pytest.raises(UserError, match=words) as e:
            read_json(tmp_path / name)
        assert str(e.value).count(str(tmp_path)) == 1  # said once, not in a line within a line
    with pytest.raises(UserError, match="read up to 10"):
        read_json(tmp_path / "long", most=10)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none")


def test_yaml(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("kind: bpe\nspecial: {eos: 3}\nrate: 1e-3\n")
    assert read_yaml(path, Shape)["rate"] == 1e-3  # YAML 1.1 alone would read a text
    for text, said in {
        "a: &x [1]\nb: *x\n": "alias",
        "a: [": "not valid YAML",
        "[" * 200 + "]" * 200: "nested",
        "{}": "kind is missing",
        "a: !!python/object:os.system {}": "not valid YAML",
    }.items():
        path.write_text(text)
        with pytest.raises(UserError, match=said) as e:
            read_yaml(path, Shape)
        assert str(e.value).count(str(path)) == 1


def test_a_shape_within_a_union():
    assert check_shape({"a": None, "b": "x", "c": 1.5}, dict[str, str | float | None], "f")
    with pytest.raises(UserError, match="f: b must be a text or a number, but is a list"):
        check_shape({"b": []}, dict[str, str | float | None], "f")
