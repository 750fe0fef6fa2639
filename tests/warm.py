"""Python processes that start in a tenth of a second: forks of one, the nursery, that has imported Lightning and Hydra.

`Popen` and `run` are subprocess's. What is started is a child of who starts it, with its own arguments, environment, folder,
streams, session and exit code; imports of llmlab are its own. A command that the nursery can't serve is started as usual.
What is asked of imports, or set by variables that a library reads when it is imported (HF_HOME), needs subprocess itself.
As a script it is the nursery, and is told the socket on which it is asked for processes.
"""

from __future__ import annotations

import array
import atexit
import ctypes
import fcntl
import gc
import importlib
import io
import json
import multiprocessing.process
import multiprocessing.util
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import types
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

PR_SET_CHILD_SUBREAPER = 36
IMPORTS = (
    "lightning.pytorch",
    "hydra",
    "hydra.core.override_parser.overrides_parser",
    "hydra._internal.hydra",
    "hydra._internal.config_loader_impl",
    "hydra._internal.core_plugins.basic_launcher",
    "safetensors.torch",
    "matplotlib.backends.backend_agg",
    "rich.panel",
    "logging.config",
    "concurrent.futures.process",
    "socketserver",
    "tokenizers",
)
_Popen = subprocess.Popen
_spawnv_passfds = multiprocessing.util.spawnv_passfds
MOST = 16  # file descriptors that a process is given


class Nursery:
    """The socket of a nursery, which ends with the process that asks it."""

    def __init__(self, asked: socket.socket) -> None:
        self.socket, self.owner, self.turn = asked, os.getpid(), threading.Lock()

    @classmethod
    def started(cls) -> Nursery:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "LOCAL_RANK", "WORLD_SIZE")}
            command = [sys.executable, __file__, str(theirs.fileno())]
            _Popen(command, env={**env, "OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        return cls(ours)

    def process(self, args: list[str], env: dict[str, str], streams: Sequence[int], **more) -> int:
        """The id of a new child of this process, which has `streams` by the numbers that it knows them by."""
        here = {"cwd": os.getcwd(), "session": False, "inherited": False}
        ignored = [s for s in signal.valid_signals() if signal.getsignal(s) is signal.SIG_IGN]
        mine = {"parent": os.getpid(), "group": os.getpgrp(), "ignored": ignored}
        about = {**here, **mine, "args": args, "env": env, **more}
        prctl = ctypes.CDLL(None).prctl
        with self.turn, memory(json.dumps(about).encode()) as told:
            # The nursery's child ends as soon as it has forked another, which this process inherits.
            prctl(PR_SET_CHILD_SUBREAPER, 1)
            try:
                fds = array.array("i", [told.fileno(), *streams])
                self.socket.sendmsg([b"new"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
                return int(self.socket.recv(99) or b"-1")
            finally:
                prctl(PR_SET_CHILD_SUBREAPER, 0)


def memory(content: bytes) -> io.FileIO:
    """A file in memory, as an environment may be longer than a message."""
    file = io.FileIO(os.memfd_create("asked"), "r+")
    file.write(content)
    file.seek(0)
    return file


_nursery: Nursery | None = None


def nursery() -> Nursery:
    global _nursery
    if _nursery is None or _nursery.owner != os.getpid():
        _nursery = Nursery.started()
    return _nursery


def serves(args: object) -> bool:
    """True for this Python with -m, -c or a script."""
    if not isinstance(args, list) or len(args) < 2 or args[0] != sys.executable:
        return False
    return (args[1] in ("-m", "-c") and len(args) > 2) or str(args[1]).endswith(".py")


class Popen(_Popen):
    """`inherited`: the processes that it starts are forks, too."""

    def __init__(self, args, *, inherited: bool = False, **how) -> None:
        self.inherited = inherited
        super().__init__([*map(os.fspath, args)] if isinstance(args, list | tuple) else args, **how)

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *more) -> None:
        environment = dict(os.environ if env is None else env)
        *_, shell, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite = more[:9]
        session, group = more[-2:]
        plain = not (shell or preexec_fn or pass_fds or executable) and group == -1
        if not plain or not serves(args):
            return super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *more)
        how = {"cwd": os.path.abspath(cwd or "."), "session": session, "inherited": self.inherited}
        streams = [usual if fd == -1 else fd for usual, fd in enumerate((p2cread, c2pwrite, errwrite))]
        self.pid = nursery().process(args, environment, streams, **how)
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)
        return None


def run(args, *, inherited: bool = False, input=None, capture_output=False, timeout=None, check=False, **how):
    """The result of a process, which `subprocess.run` would start."""
    if capture_output:
        how.update(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if input is not None:
        how.update(stdin=subprocess.PIPE)
    with Popen(args, inherited=inherited, **how) as process:
        try:
            out, err = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(args, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


def _spawned(path, args, fds) -> int:
    """multiprocessing.util.spawnv_passfds, with which it starts processes where it is told to spawn."""
    words = [os.fsdecode(a) for a in args]
    if "--multiprocessing-fork" not in words:  # what tracks its resources imports next to nothing
        return _spawnv_passfds(path, args, fds)
    words = [sys.executable, *words[words.index("-c") :]]
    return nursery().process(words, dict(os.environ), [0, 1, 2, *fds], numbers=[0, 1, 2, *fds])


# ---------------------------------------------------------------- the nursery


def serve(asked: socket.socket) -> None:
    """Fork a process for each that is asked for, until nobody is left to ask."""
    while True:
        try:
            message, ancillary, *_ = asked.recvmsg(9, socket.CMSG_SPACE((1 + MOST) * array.array("i").itemsize))
        except OSError:
            os._exit(0)
        if not message:
            os._exit(0)
        fds = array.array("i")
        fds.frombytes(ancillary[0][2])
        told, *streams = fds
        with open(told, encoding="utf-8") as file:
            about = json.load(file)
        ours, theirs = os.pipe()
        if (between := os.fork()) == 0:
            os.close(ours)
            if (child := os.fork()) == 0:
                os.close(theirs)
                asked.close()
                become(about, streams)
            os.write(theirs, b"%d" % child)
            os._exit(0)
        os.close(theirs)
        child = os.read(ours, 99)
        os.close(ours)
        os.waitpid(between, 0)
        asked.send(child)
        for fd in streams:
            os.close(fd)


def become(about: dict, streams: list[int]) -> None:
    """What was asked for, in place of this fork."""
    deadline = time.monotonic() + 10
    while os.getppid() != about["parent"]:  # until the process between has ended
        if time.monotonic() > deadline:  # as has who asked for it
            os._exit(1)
        time.sleep(0.001)
    # First to where none of them is to be.
    above = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 1000) for fd in streams]
    for fd in streams:
        os.close(fd)
    for number, fd in zip(about.get("numbers", range(3)), above, strict=True):
        os.dup2(fd, number)
        os.close(fd)
    if about["session"]:
        os.setsid()
    elif os.getpgrp() != about["group"]:
        os.setpgid(0, about["group"])
    os.chdir(about["cwd"])
    os.environ.clear()
    os.environ.update(about["env"])
    if about["inherited"]:
        _hand_down()
    # A process ignores what the one does that starts it; SIGINT the nursery ignores, as it is in the terminal's group.
    for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        ignores = signal.getsignal(signum) is signal.SIG_IGN
        if signum in about["ignored"]:
            signal.signal(signum, signal.SIG_IGN)
        elif ignores:
            signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
    code = 1
    try:
        code = _program(about["args"])
    except SystemExit as e:
        code = _code(e)
    except KeyboardInterrupt:
        with suppress(ValueError):
            traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
    finally:
        # As Python ends; what it would tear down, the kernel does.
        with suppress(BaseException):
            threading._shutdown()
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(BaseException):
                stream.flush()
        os._exit(code)


def _hand_down() -> None:
    """Have all that this process starts be forks, of a copy of it as it is now."""
    global _nursery
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        ours.close()
        os.setpgid(0, 0)  # what ends this process's group is not for it
        for usual in range(3):
            os.dup2(os.open(os.devnull, os.O_RDWR), usual)
        serve(theirs)
    theirs.close()
    _nursery = Nursery(ours)
    subprocess.Popen = Popen  # type: ignore[misc]
    multiprocessing.util.spawnv_passfds = _spawned


def _stream(number: int, like: TextIO) -> io.TextIOWrapper:
    """One of the three, as Python opens it: the nursery's are of what it was given."""
    unbuffered = number > 0 and os.environ.get("PYTHONUNBUFFERED", "") != ""
    binary = open(number, "rb" if number == 0 else "wb", 0 if unbuffered else -1, closefd=False)  # noqa: SIM115
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", "").partition(":")
    errors = like.errors if number == 2 or not (encoding or errors) else errors or "strict"
    through = unbuffered or like.write_through  # type: ignore[attr-defined]
    how = {"line_buffering": not unbuffered and (number == 2 or binary.isatty()), "write_through": through}
    return io.TextIOWrapper(binary, encoding or like.encoding, errors, **how)  # type: ignore[arg-type]


def _code(e: SystemExit) -> int:
    if e.code is None or isinstance(e.code, int):
        return (e.code or 0) & 255
    print(e.code, file=sys.stderr)
    return 1


def _program(args: list[str]) -> int:
    """What is typed behind `python`, run as Python does."""
    import numpy
    import torch

    multiprocessing.process.ORIGINAL_DIR = os.getcwd()  # as it was when that was imported
    numpy.random.seed()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    sys.stdin, sys.stdout, sys.stderr = map(_stream, range(3), (sys.stdin, sys.stdout, sys.stderr))
    how, rest = args[1], args[2:]
    first = os.getcwd() if how == "-m" else "" if how == "-c" else str(Path(how).parent.resolve())
    sys.path[:0] = [first, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    sys.orig_argv = list(args)
    sys.argv = rest if how == "-m" else ["-c", *rest[1:]] if how == "-c" else args[1:]
    if any(Path(d, "sitecustomize.py").exists() for d in sys.path[1:]):
        sys.modules.pop("sitecustomize", None)
        importlib.import_module("sitecustomize")
    if how == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif how == "-c":
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec", dont_inherit=True), main.__dict__)
    else:
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        main.__dict__.update(__file__=how, __spec__=None)
        exec(compile(Path(how).read_bytes(), how, "exec", dont_inherit=True), main.__dict__)
    return 0


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    del sys.path[0]  # the folder of this file
    gc.disable()
    for name in IMPORTS:
        importlib.import_module(name)
    gc.freeze()
    gc.enable()
    serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    _begin()
