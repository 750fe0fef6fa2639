"""The tests that an answer's code passes, in a process of its own. All code here is harmless: it asks and is refused."""

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from parts import part

from llmlab.errors import UserError

TESTS = ["assert f(2) == 4", "assert f(3) == 9"]
ASKS = "def f(x):\n    try:\n        {}\n    except {}:\n        return x * x\n    return 0"  # right if it is refused
# By name: the code, its share of TESTS, and what it is counted as.
CASES = {
    "right": ("def f(x): return x * x", 1.0, None),
    "half": ("def f(x): return x + 2", 0.5, None),
    "wrong": ("def f(x): return 0", 0.0, None),
    "fenced": ("So:\n```python\ndef f(x):\n    return x**2\n```\nor\n```\nnot this\n```", 1.0, None),
    "without an end": ("```py\ndef f(x): return x * x", 1.0, None),
    "another language": ("```c\nint f;\n```", 0.0, "invalid"),
    "indented": ("  def f(x):\n    return x * x", 1.0, None),
    "dataclass": (
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\ndef f(x): return A(x).x ** 2",
        1.0,
        None,
    ),
    "prose": ("I think that", 0.0, "invalid"),
    "nothing": (" ", 0.0, "invalid"),
    "raises": ("1 / 0", 0.0, "invalid"),
    "exits": ("raise SystemExit", 0.0, "invalid"),
    "exits in a test": ("def f(x): raise SystemExit(0)", 0.0, None),
    "ends": ("import os; os._exit(0)", 0.0, "crashed"),
    "a verdict of its own": ("import os; os.write(3, b'ran 2'); os._exit(0)", 0.0, "crashed"),
    "memory at once": ("x = bytearray(1 << 40)", 0.0, "crashed"),
    "memory bit by bit": ("x = []\nwhile True: x.append(bytes(range(256)) * 99_999)", 0.0, "crashed"),
    "loops": ("while True: pass", 0.0, "timed_out"),
    "prints for ever": ("while True: print('x' * 1000)", 0.0, "timed_out"),
    "sleeps": ("def f(x):\n    import time; time.sleep(60)", 0.0, "timed_out"),
    "prints": ("print('x' * 1_000_000)\ndef f(x): return x * x", 1.0, None),
    "file": (ASKS.format("open('a', 'wb').write(bytes(1 << 21))", "OSError"), 1.0, None),
    "environment": ("import os\ndef f(x): return 0 if 'A_SECRET' in os.environ else x * x", 1.0, None),
    "folder": ("import os\ndef f(x): return 0 if os.listdir() else x * x\n", 1.0, None),
    "pipes": ("import os\ndef f(x): return x * x if len(os.listdir('/proc/self/fd')) <= 5 else 0", 1.0, None),
    "this process": ("import sys\ndef f(x): return 0 if 'torch' in sys.modules else x * x", 1.0, None),
}
# What Linux has a filter of system calls for.
CALLS = {
    "fork": ASKS.format("__import__('os').fork()", "PermissionError"),
    "thread": ASKS.format("__import__('_thread').start_new_thread(print, ())", "RuntimeError"),
    "program": ASKS.format("__import__('subprocess').run(['true'])", "OSError"),
    "exec": ASKS.format("__import__('os').execv('/bin/true', ['true'])", "PermissionError"),
    "signal": ASKS.format("__import__('os').kill(__import__('os').getppid(), 0)", "PermissionError"),
    "socket": ASKS.format("__import__('socket').socket()", "PermissionError"),
}
LINUX = sys.platform == "linux"


def code(**options):
    return part("reward", "code", **options)()


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Scores and shown numbers by name. Those that end by time are apart, so that a busy machine ends no other so."""
    chosen = {k: c for k, (c, _, _) in CASES.items() if LINUX or k != "pipes"} | (CALLS if LINUX else {})
    slow = [name for name in chosen if CASES.get(name, ("", 0, ""))[2] == "timed_out"]
    folder, found = tmp_path_factory.mktemp("temporary"), {}
    began = time.perf_counter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("A_SECRET", "x")
        patch.setattr(tempfile, "tempdir", str(folder))
        for names, timeout in ((slow, 0.3), ([n for n in chosen if n not in slow], 20.0)):
            some = code(timeout=timeout, memory=128, workers=4).score(
                [{"tests": TESTS}] * len(names), [chosen[n] for n in names]
            )
            found |= {n: (some[i], [kind for kind, of in some.shown.items() if of[i]]) for i, n in enumerate(names)}
    assert time.perf_counter() - began < 60
    assert not list(folder.iterdir())
    return found


@pytest.mark.parametrize("name", CASES)
def test_an_answer_is_worth_the_share_of_tests_that_it_passes(scored, name):
    _, share, counted = CASES[name]
    if name == "pipes" and not LINUX:
        return
    assert scored[name] == (share, [] if counted is None else [f"code_{counted}"])


@pytest.mark.skipif(not LINUX, reason="seccomp is Linux's")
@pytest.mark.parametrize("name", CALLS)
def test_what_reaches_out_of_the_process_is_refused(scored, name):
    assert scored[name] == (1.0, [])


def test_all_or_nothing_and_tests_as_one_text():
    answers = [CASES["right"][0], CASES["half"][0]]
    assert code(credit="all").score([{"tests": TESTS}] * 2, answers) == [1.0, 0.0]
    assert code(field="test").score([{"test": "\n".join(TESTS)}] * 2, answers) == [1.0, 0.0]


def test_a_record_without_tests_is_named():
    for tests in ([], "", [" "]):
        with pytest.raises(UserError, match="reward=code: a record's tests has no test"):
            code().score([{"tests": tests}], ["x = 1"])


def test_a_sum_shows_what_its_parts_show():
    how = {"of": ("exact", "code"), "weights": (1.0, 2.0), "options": ({}, {"field": "answer"})}
    scores = part("reward", "sum", **how)().score([{"answer": "7"}] * 2, ["7", "7 x"])
    assert scores == [3.0, 0.0] and scores.shown["code_invalid"] == [0.0, 1.0]


@pytest.mark.slow  # a process that imports torch
@pytest.mark.skipif(not LINUX, reason="/proc is Linux's")
def test_nothing_outlives_a_run_that_is_killed():
    """The process that trains is killed while an answer runs: what it started ends by itself."""
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from parts import part\n"
        "part('reward', 'code', timeout=60.0)().score([{'tests': 'f'}], ['import time; time.sleep(55)'])"
    )
    process = subprocess.Popen([sys.executable, "-c", script])

    def children(pid):
        return [int(p) for t in Path(f"/proc/{pid}/task").glob("*/children") for p in t.read_text().split()]

    server = forks = []
    until = time.monotonic() + 60
    while not forks and time.monotonic() < until:
        time.sleep(0.02)
        server = children(process.pid)
        forks = [f for s in server for f in children(s)]
    assert forks
    process.send_signal(signal.SIGKILL)
    process.wait()
    while (left := [p for p in (*server, *forks) if _runs(p)]) and time.monotonic() < until:
        time.sleep(0.02)
    assert not left


def _runs(pid):
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("options", "said"),
    [({"timeout": 0.0}, "reward.timeout"), ({"memory": 1}, "reward.memory"), ({"workers": 0}, "reward.workers")],
)
def test_options_that_cannot_be(options, said):
    with pytest.raises(ValueError, match=said):
        code(**options)
