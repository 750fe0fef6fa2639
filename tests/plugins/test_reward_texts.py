"""Rewards of texts: a pattern, the last number, the length, a function of one's own, and several as one."""

import math
import threading
import time

import pytest
from parts import part

from llmlab.errors import UserError


def scores(reward, answers, record=None, **options):
    return part("reward", reward, **options)().score([record or {"prompt": "p"}] * len(answers), answers)


def test_a_pattern_is_found_or_its_group_is_the_records_answer():
    said = r"answer is (-?\d+)"
    assert scores("regex", ["the answer is 7.", "7", "answer is x"], pattern=said) == [1, 0, 0]
    assert scores("regex", ["answer is 7", "answer is 8"], {"answer": 7}, pattern=said, field="answer") == [1, 0]
    assert scores("regex", ["<a>7</a>\n", "x <a>7</a>"], pattern=r"<a>\d</a>", whole=True) == [1, 0]
    assert scores("regex", ["b"], {"answer": "a"}, pattern="(a)|b", field="answer") == [0]  # a group without a match


@pytest.mark.parametrize(
    ("answer", "right", "worth"),
    [
        *[("so 3 + 4 = 7.", "7", 1), ("7, then 8", 7, 0), ("1,000", "1000.0", 1), ("it is 1e3", 1000, 1), ("-7", 7, 0)],
        *[("= -7", -7, 1), ("3-7", 7, 1), ("no number", 0, 0), ("", 0, 0), ("12", "#### 12", 1), ("1, 2", 2, 1)],
        *[(".5", 0.5, 1), ("0.50", 0.5, 1), ("$72", 72, 1), ("7", "we had 3, so 7", 1)],
    ],
)
def test_the_last_number_is_the_records(answer, right, worth):
    assert scores("number", [answer], {"answer": right}) == [worth]


def test_a_number_may_be_off_by_a_tolerance_and_a_record_must_have_one():
    assert scores("number", ["3.14", "3.2"], {"answer": math.pi}, tolerance=0.01) == [1, 0]
    with pytest.raises(UserError, match="reward=number: the record's answer has no number: 'seven'"):
        scores("number", ["7"], {"answer": "seven"})


def test_length_counts_what_is_missing_or_too_much():
    assert scores("length", ["", "ab", " abcd ", "abcdef", "a" * 99], least=4, most=4) == [-1, -0.5, 0, -0.5, -1]
    assert scores("length", ["a b c d", "abcd"], least=0, most=2, unit="words") == [-1, 0]


def test_a_sum_is_weighted():
    how = {"of": ("exact", "length"), "weights": (2.0, 0.5), "options": ({"field": "right"}, {"most": 2})}
    made = part("reward", "sum", **how)()
    assert made.needs == ("right",)
    assert made.score([{"right": "7"}] * 3, ["7", "777", "8"]) == [2.0, -0.25, 0.0]
    assert part("reward", "sum", of=("contains", "exact"))().score([{"answer": "7"}], ["x7"]) == [1.0]


@pytest.fixture
def own(tmp_path):
    def make(text):
        path = tmp_path / "own.py"
        path.write_text(text)
        return {"path": str(path)}

    return make


def test_a_function_of_ones_own_judges_an_answer_and_its_record(own):
    text = "def score(answer, record):\n    record['n'] = 1\n    return answer == record['answer']\n"
    record = {"answer": "7"}
    assert scores("function", ["7", "8"], record, **own(text)) == [1.0, 0.0] and record == {"answer": "7"}
    assert scores("function", ["abc"], **own("def other(answer, record):\n    return len(answer)"), name="other") == [
        3.0
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def score(a, r):\n    x = 1\n    return r['no']", "own.py:3: score raised KeyError: 'no', of the answer '7'"),
        ("def score(a, r):\n    return float('nan')", "score must give a finite number, but gave nan of the answer '7'"),
        ("def score(a, r):\n    return 'good'", "but gave 'good'"),
        ("def score(a):\n    return 1", r"score raised TypeError: score\(\) takes 1 positional"),
        ("def scores(a, r):\n    return 1", r"has no function score; reward.name=NAME names another \(did you mean scores"),
        ("import sys\ndef score(a, r):\n    sys.exit(3)", "own.py:3: score raised SystemExit: 3, of the answer '7'"),
        ("raise SystemExit(3)", "own.py:1: SystemExit: 3"),
        ("def score(:", "own.py:1: invalid syntax"),
        ("import no_such_thing", "own.py:1: ModuleNotFoundError: No module named 'no_such_thing'"),
    ],
)  # fmt: skip
def test_a_function_that_fails_is_named(own, text, said):
    with pytest.raises(UserError, match=said):
        scores("function", ["7"], **own(text))


@pytest.mark.parametrize(
    "body", ["while True: pass", "__import__('time').sleep(9)", "__import__('re').match('(a+)+$', 'a' * 40 + 'b')"]
)
def test_a_function_that_hangs_is_stopped(own, body):
    text = f"def score(a, r):\n    try:\n        {body}\n    except Exception:\n        return 1\n"
    began = time.perf_counter()
    with pytest.raises(
        UserError, match=r"own.py: score took more than 0.05 s of the answer '7'; reward.timeout=SECONDS"
    ):
        scores("function", ["7"], timeout=0.05, **own(text))
    assert time.perf_counter() - began < 2


def test_a_function_is_called_in_any_thread(own):
    made, found = part("reward", "function", **own("def score(a, r):\n    return 1"))(), []
    thread = threading.Thread(target=lambda: found.extend(made.score([{}], ["7"])))
    thread.start()
    thread.join()
    assert found == [1.0]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("regex", {}, "reward.pattern must be a regular expression"),
        ("regex", {"pattern": "("}, "is no regular expression: missing"),
        ("regex", {"pattern": "a", "field": "answer"}, "no group in parentheses, which reward.field=answer"),
        ("number", {"tolerance": -1.0}, "reward.tolerance must be at least 0, but is -1.0"),
        ("length", {"least": 5, "most": 4}, "reward.least=5 must be at least 0 and reward.most=4"),
        ("function", {}, "reward.path must be a Python file"),
        ("function", {"path": "no/such.py"}, "reward.path=no/such.py: there is no such file"),
        ("function", {"path": "x.py", "timeout": 0.0}, "reward.timeout must be more than 0 seconds"),
        ("sum", {}, "reward.of is empty"),
        ("sum", {"of": ("sum",)}, "sum can't be one of its own parts"),
        ("sum", {"of": ("exakt",)}, "reward=exakt: there is no such reward; did you mean exact"),
        ("sum", {"of": ("exact",), "weights": (1.0, 2.0)}, "reward.weights has 2 entries, but reward.of names 1"),
        ("sum", {"of": ("exact",), "weights": (0.0,)}, "one of them not 0"),
        ("sum", {"of": ("exact",), "options": ({"fild": "x"},)}, "exact has no option fild; it has field"),
    ],
)
def test_options_that_cannot_be(name, options, said):
    with pytest.raises(ValueError, match=said):
        part("reward", name, **options)()
