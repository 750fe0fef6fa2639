"""sweep.json and point.json with one thing wrong: a line that names the file."""

import json

import pytest

from llmlab.errors import UserError
from llmlab.report.collect import read_sweep
from llmlab.sweep import point

GOOD = {"name": "x", "keys": {"seed": ["1"]}, "fixed": [], "points": [{"folder": "seed=1", "overrides": ["seed=1"]}]}
WRONG = [
    None,
    [],
    3,
    "x",
    {"keys": []},
    {"keys": {"seed": 3}},
    {"points": {}},
    {"points": [3]},
    {"points": [{"folder": 1}]},
]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_sweep(tmp_path, wrong):
    found = {**GOOD, **wrong} if isinstance(wrong, dict) else wrong
    (tmp_path / point.SWEEP).write_text(json.dumps(found))
    for read in (read_sweep, point.read_sweep):
        with pytest.raises(UserError, match=f"^{tmp_path / point.SWEEP}: "):
            read(tmp_path)


def test_what_is_sound(tmp_path):
    (tmp_path / point.SWEEP).write_text(json.dumps(GOOD))
    assert read_sweep(tmp_path).keys == point.read_sweep(tmp_path)["keys"] == {"seed": ["1"]}
    assert point.read_note(tmp_path) == {}


@pytest.mark.parametrize("text", ["", "null", "[]", '{"hash": 3}', '{"ended": "x"}', "[" * 9999, "\0"])
def test_a_point(tmp_path, text):
    (tmp_path / point.NAME).write_text(text)
    with pytest.raises(UserError, match=f"^{tmp_path / point.NAME}"):
        point.read_note(tmp_path)
