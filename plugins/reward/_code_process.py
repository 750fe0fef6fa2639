"""The process in which answers' code is run: a fork of it for each answer, with limits of its own.

A script that imports nothing of llmlab, so that it starts in some hundredths of a second and its forks hold nothing of the
run. Standard input is one JSON object, {"jobs": [[answer, what it is judged by], ...], "scorer", "folder", "timeout", "memory",
"file_size", "workers"}; a line of standard output for each job is [its number, VERDICT, number]: the tests that its code
passes, or with the scorer "reasoning_gym" the package's score. VERDICT is
"ran", or what gives no number. `llmlab_plugins.reward._limited` is the other end.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import math
import os
import platform
import resource
import secrets
import shutil
import signal
import sys
import time
import types
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

LONGEST = 65_536  # bytes that a fork may say, of which it needs 60: a pipe holds no more, and who fills it waits

# By machine: what ptrace calls it (AUDIT_ARCH of linux/audit.h), and the numbers of system calls that start a process or
# a thread, run another program, open a socket, send a signal or write into another process.
CALLS = {
    "x86_64": (
        0xC000003E,
        (41, 56, 57, 58, 59, 62, 101, 129, 200, 234, 297, 311, 322, 424, 425, 434, 435),
    ),
    "aarch64": (
        0xC00000B7,
        (117, 129, 130, 131, 138, 198, 220, 221, 240, 271, 281, 424, 425, 434, 435),
    ),
}


@dataclass
class Fork:
    """A running answer. end: of its pipe, which is read; until: of time.monotonic."""

    number: int
    end: int
    token: str
    until: float
    folder: str


def main() -> None:
    request = json.loads(sys.stdin.buffer.read())
    out, sys.stdout = sys.stdout, sys.stderr  # reasoning_gym prints
    jobs, parent = list(enumerate(request["jobs"])), os.getppid()
    jobs.reverse()
    running: dict[int, Fork] = {}
    judge = _reasoning(request["jobs"]) if request["scorer"] == "reasoning_gym" else _judged
    gc.freeze()  # else a collection in a fork writes to, and so copies, all pages
    while jobs or running:
        while jobs and len(running) < request["workers"]:
            number, (answer, by) = jobs.pop()
            pid, fork = _started(number, partial(judge, answer, by), request)
            running[pid] = fork
        time.sleep(0.001)
        if os.getppid() != parent:  # killed: nobody would end this process
            for pid in running:
                os.kill(pid, signal.SIGKILL)
            os._exit(1)
        for pid, fork in list(running.items()):
            if (verdict := _verdict(pid, fork)) is not None:
                del running[pid]
                os.close(fork.end)
                shutil.rmtree(fork.folder, ignore_errors=True)
                print(json.dumps([fork.number, *verdict]), file=out, flush=True)


def _started(number: int, judge: Callable[[], str], request: dict[str, Any]) -> tuple[int, Fork]:
    end, said = os.pipe()
    # What the code prints or returns is no verdict: it would have to find the token.
    token, folder = secrets.token_hex(16), os.path.join(request["folder"], str(number))
    os.mkdir(folder)
    pid = os.fork()
    if not pid:
        try:
            os.dup2(said, 3)
            os.chdir(folder)
            _limited(request)
            verdict = judge()
            os.write(3, f"{token} {verdict}\n".encode())
        finally:
            os._exit(0)
    os.close(said)
    os.set_blocking(end, False)
    return pid, Fork(number, end, token, time.monotonic() + request["timeout"], folder)


def _verdict(pid: int, fork: Fork) -> tuple[str, float] | None:
    """What became of a fork: ("ran", its number), or why there is nothing to count; None of one that runs."""
    done, status = os.waitpid(pid, os.WNOHANG)
    if not done:
        if time.monotonic() < fork.until:
            return None
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return "timed_out", 0
    said = b""
    with contextlib.suppress(BlockingIOError):
        said = os.read(fork.end, LONGEST)
    # The first line: where code can fork (no seccomp, as root) its fork says another.
    match said.decode(errors="replace").partition("\n")[0].split(" "):
        case [fork.token, kind, number]:
            return kind, float(number)
    return "timed_out" if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU else "crashed", 0


# ---------------------------------------------------------------- in the fork


def _limited(request: dict[str, Any]) -> None:
    """Limits of this process, before it runs what is not ours."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for own in (0, 1, 2):
        os.dup2(nothing, own)
    os.closerange(4, 256)  # pipes of other answers
    for kind, most in (
        (resource.RLIMIT_CPU, math.ceil(request["timeout"])),
        (resource.RLIMIT_AS, request["memory"]),
        (resource.RLIMIT_FSIZE, request["file_size"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
        # Counted are all processes of the user, who has more already. It does not bind root.
        (resource.RLIMIT_NPROC, 0),
    ):
        with contextlib.suppress(ValueError, OSError):  # macOS refuses some
            resource.setrlimit(kind, (most, most))
    _without_calls()


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _without_calls() -> None:
    """CALLS fail from here on with "operation not permitted", where Linux has seccomp (seccomp(2)); also for root."""
    if sys.platform != "linux" or platform.machine() not in CALLS:
        return
    architecture, calls = CALLS[platform.machine()]
    load, equal, above, give = 0x20, 0x15, 0x35, 0x06  # instructions of BPF: word at, ==, >=, return
    allowed, refused, killed = 0x7FFF0000, 0x00050001, 0x80000000  # 0x00050000 + EPERM
    lines = [
        (load, 0, 0, 4),  # the architecture
        (equal, 1, 0, architecture),
        (give, 0, 0, killed),  # calls of 32 bits have other numbers
        (load, 0, 0, 0),  # the call's number
        (above, 0, 1, 0x40000000),  # those of x32
        (give, 0, 0, refused),
    ]
    for call in calls:
        lines += [(equal, 0, 1, call), (give, 0, 0, refused)]
    lines.append((give, 0, 0, allowed))
    raw = b"".join(
        code.to_bytes(2, "little") + bytes((then, other)) + value.to_bytes(4, "little")
        for code, then, other, value in lines
    )
    held = ctypes.create_string_buffer(raw, len(raw))
    program = _Program(len(lines), ctypes.addressof(held))
    libc = ctypes.CDLL(None)
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS, without which a filter needs to be root
    libc.prctl(22, 2, ctypes.byref(program), 0, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def _judged(code: str, tests: list[str]) -> str:
    """ "KIND tests passed". A test passes that raises nothing; it has the names that the code left, and no other test's."""
    answer = types.ModuleType("answer")
    sys.modules["answer"] = answer  # dataclasses look a class's module up
    space = vars(answer)
    try:
        exec(compile(code, "<answer>", "exec"), space)
        passed = 0
        for test in tests:
            try:
                exec(compile(test, "<test>", "exec"), dict(space))
                passed += 1
            except MemoryError:
                raise
            except BaseException:  # SystemExit is no pass
                continue
    except MemoryError:
        return "crashed 0"
    except BaseException:
        return "invalid 0"
    return f"ran {passed}"


def _reasoning(jobs: list[Any]) -> Callable[[str, Any], str]:
    """Scores of reasoning_gym, of [task, seed, size, index]; some of its scorers evaluate an answer as Python."""
    import reasoning_gym

    makes = {
        tuple(by[:3]): reasoning_gym.create_dataset(by[0], seed=by[1], size=by[2])
        for by in {tuple(by) for _, by in jobs}
    }

    def judge(answer: str, by: list[Any]) -> str:
        made = makes[tuple(by[:3])]
        # Made again, as JSON would have made lists of its tuples, by which some scorers go.
        entry = made[by[3]]
        if zlib.crc32(entry["question"].encode()) != by[4]:
            return "differs 0"
        try:
            return f"ran {float(made.score_answer(answer, entry))}"
        except MemoryError:
            return "crashed 0"
        except Exception:  # of an answer that is no list, number or board
            return "invalid 0"

    return judge


if __name__ == "__main__":
    main()
