"""A process that warm.py forks is what a Python that is started is."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests import warm

TELLS = """
import __main__, json, multiprocessing.process, os, signal, sys

def f(x: int): pass

print(json.dumps({
    "argv": [sys.argv, sys.orig_argv, sys.path],
    "main": [__name__, __main__ is sys.modules["__main__"], __main__.__spec__ and __main__.__spec__.name],
    "environment": dict(os.environ),
    "folders": [os.getcwd(), multiprocessing.process.ORIGINAL_DIR],
    "parent": [os.getppid(), os.getpgrp() == os.getpid(), os.getsid(0) == os.getpid()],
    "signals": {s.name: str(signal.getsignal(s)).partition(" at ")[0] for s in signal.Signals},
    "files": sorted(n for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")),
    "streams": [(s.encoding, s.errors, s.write_through, s.isatty()) for s in (sys.stdin, sys.stdout, sys.stderr)],
    "threads": len(os.listdir("/proc/self/task")),
    "annotations": str(f.__annotations__),
    "customised": "customised" in sys.modules,
    "heard": sys.stdin.read(),
}))
print("to the other stream", file=sys.stderr)
"""
ENDS = {
    "0": "pass",
    "3": "import sys; sys.exit(3)",
    "said": "import sys; sys.exit('it ends')",
    "error": "1 / 0",
    # A background job of a shell ignores it, and so do the processes that it starts.
    "interrupt": "import os, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "os.kill(os.getpid(), signal.SIGINT); signal.pause()",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "atexit": "import atexit, os; atexit.register(print, 'last'); print('first')",
    "thread": "import threading, time; threading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()",
}
SPAWNS = """
import multiprocessing, os

def told(queue, parent):
    queue.put((__name__, os.getppid() == parent))

if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=told, args=(queue := spawn.SimpleQueue(), os.getpid()))
    process.start()
    print(queue.get())
    process.join()
    print(process.exitcode)
"""


def both(words, inherited=False, **how):
    """The same process started, and forked."""
    how = {"capture_output": True, "text": True, "timeout": 60, **how}
    forked = warm.run([sys.executable, *words], inherited=inherited, **how)
    return subprocess.run([sys.executable, *words], **how), forked


@pytest.mark.slow  # a process that imports Lightning
@pytest.mark.parametrize(
    "words", [["-c", TELLS, "a", "b"], ["-m", "tells", "a"], ["tells.py", "a"]], ids=lambda w: w[0]
)
@pytest.mark.parametrize("session", [False, True])
def test_it_has_all_that_it_is_given(words, session, tmp_path):
    (tmp_path / "tells.py").write_text(TELLS)
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text("import customised")
    (tmp_path / "site/customised.py").write_text("")
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "LONG": "x" * 100_000, "PYTHONIOENCODING": "utf-8"}
    real, forked = both(words, cwd=tmp_path, env=env, input="a word", start_new_session=session)
    assert real.returncode == forked.returncode == 0, forked.stderr
    assert json.loads(forked.stdout) == json.loads(real.stdout)
    assert forked.stderr == real.stderr


@pytest.mark.slow
@pytest.mark.parametrize("how", ENDS)
def test_it_ends_as_one_does(how):
    real, forked = both(["-c", ENDS[how]])
    assert (forked.returncode, forked.stdout) == (real.returncode, real.stdout)
    assert forked.stderr.splitlines()[-1:] == real.stderr.splitlines()[-1:]


@pytest.mark.slow
def test_it_is_told_signals_and_can_be_killed():
    code = "import time; print('here', flush=True); time.sleep(60)"
    for signum in (signal.SIGTERM, signal.SIGKILL):
        process = warm.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "here\n" and process.poll() is None
        process.send_signal(signum)
        assert process.wait(10) == -signum
        process.stdout.close()


@pytest.mark.slow
def test_what_it_starts_is_its_child_and_ends_the_nursery_with_it(tmp_path):
    (tmp_path / "spawns.py").write_text(SPAWNS)
    real, forked = both(["spawns.py"], inherited=True, cwd=tmp_path)
    assert forked.stdout == real.stdout == "('__mp_main__', True)\n0\n", forked.stderr
    more = "import os, subprocess, sys; subprocess.run([sys.executable, '-c', 'import os; print(os.getppid())']); "
    code = more + "print(os.getpid(), open(f'/proc/self/task/{os.getpid()}/children').read())"
    parent, own, *children = warm.run([sys.executable, "-c", code], inherited=True, capture_output=True).stdout.split()
    assert parent == own and len(children) == 1
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{int(children[0])}") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not os.path.exists(f"/proc/{int(children[0])}")
