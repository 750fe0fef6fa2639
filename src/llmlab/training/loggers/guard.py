"""A thread between a run and something that it reports to: what raises there, or never returns, costs a line."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmlab.training.loggers.sink import Sink

WAITING = 1000  # calls that may wait; more, and the sink hangs


class Guarded:
    """Calls of one sink, in order, in a thread of its own.

    failed(name, reason) is called once, in the caller's thread, when a call raised, took too long, or too many wait; from
    then on nothing is called any more.
    """

    def __init__(self, name: str, sink: Sink, failed: Callable[[str, str], None]):
        self.name, self.sink, self.failed = name, sink, failed
        self.off = False
        self._error: str | None = None  # of the thread, not said yet
        self._calls: queue.Queue[tuple[str, tuple[Any, ...], _Answer | None] | None] = queue.Queue(WAITING)
        # A daemon, as Python waits for all others when it exits, and this one may hang in a socket.
        self._thread = threading.Thread(target=self._work, name=f"logger {name}", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            method, args, answer = call
            try:
                # A call that was queued before the sink was switched off is passed over, but whoever
                # waits for it is answered.
                if self._error is None and not self.off:
                    result = getattr(self.sink, method)(*args)
                    if answer is not None:
                        answer.value = result
            except BaseException as e:
                # W&B's teardown raises SystemExit, which would end this thread without a word.
                self._error = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}".rstrip(": ")
                self._abandon()
            if answer is not None:
                answer.done.set()

    def _abandon(self) -> None:
        with contextlib.suppress(BaseException):
            self.sink.abandon()

    def _switch_off(self, reason: str) -> None:
        if not self.off:
            self.off = True
            self.failed(self.name, reason)

    def _hangs(self, reason: str) -> None:
        self._abandon()
        self._switch_off(reason)

    def tell(self, method: str, *args: object, answer: _Answer | None = None) -> bool:
        """Call it sometime; False if the sink is off."""
        if self._error is not None:
            self._switch_off(self._error)
        if self.off:
            return False
        try:
            # Never `put`, which would wait for a sink that hangs, and training with it.
            self._calls.put_nowait((method, args, answer))
        except queue.Full:
            self._hangs("it does not answer")
            return False
        return True

    def ask(self, method: str, *args: object, seconds: float) -> Any:
        """The value that it returns; None if it fails or has not done so after `seconds`."""
        answer = _Answer()
        if not self.tell(method, *args, answer=answer):
            return None
        if not answer.done.wait(seconds):
            self._hangs(f"no answer after {seconds:g} s")
        elif self._error is not None:
            self._switch_off(self._error)
        return answer.value

    def close(self) -> None:
        """No call will follow."""
        with contextlib.suppress(queue.Full):
            # A full queue is that of a sink that hangs: its thread is a daemon's, and left behind.
            self._calls.put_nowait(None)


class _Answer:
    def __init__(self) -> None:
        self.done, self.value = threading.Event(), None
