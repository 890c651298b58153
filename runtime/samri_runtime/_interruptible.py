"""A stop that takes effect while C code computes.

Python handles a signal between two of its own instructions. An encoder's run, or the opening of a large graph, is one
call of C code that lasts up to minutes, and Ctrl-C would wait for its end. Nothing is half-written in that time, or a
killed process would leave the same; so the process may end there and then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, Generic, NoReturn, TypeVar

T = TypeVar("T")

STOPPED = 130
_PATIENCE = 2.0  # Seconds in which Python would have handled the signal, were it not busy in C code.
_POLL = 0.2  # On Windows a wait is not interrupted, so it is short.
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
_at_work: set[threading.Thread] = set()


class Background(Generic[T]):
    """Work in a thread of its own, as a context: it is over when the block ends, unless the block was stopped.

    Args:
        work: What to do.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._answer: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Background[T]:
        _at_work.add(self._thread)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _at: TracebackType | None
    ) -> None:
        if kind is None or not issubclass(kind, KeyboardInterrupt):
            self._wait()

    def result(self) -> T:
        """The result of the work, once it is done; an exception of the work is raised here."""
        self._wait()
        if self._error is not None:
            raise self._error
        return self._answer[0]

    def _wait(self) -> None:
        while self._thread.is_alive():
            self._thread.join(_POLL)

    def _run(self) -> None:
        try:
            self._answer.append(self._work())
        except BaseException as error:  # Raised again by `result`.
            self._error = error
        finally:
            _at_work.discard(self._thread)


@contextlib.contextmanager
def stoppable(program: str) -> Iterator[None]:
    """In this block, SIGINT, SIGTERM and SIGHUP end the process within seconds, whatever C code is doing.

    They raise what their handlers raise, as ever, if Python gets to handle them. Where it doesn't, or where a
    `Background` is still at work once the block was stopped, the process ends with 130. A handler that is set within
    the block is left in peace. Off the main thread nothing changes: there, Python handles no signals.

    Args:
        program: Its name, for the line that says it was stopped.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with contextlib.ExitStack() as cleanup:
        # stderr may be redirected when it is needed.
        terminal = _copied_stderr(cleanup)
        watcher = _Watcher(lambda: _leave(program, terminal))
        cleanup.callback(watcher.close)
        try:
            yield
        except KeyboardInterrupt:
            if _at_work:  # The interpreter can't shut down under it.
                _leave(program, terminal)
            raise


class _Watcher:
    """Waits, in a thread, for signals that the main thread doesn't handle in time."""

    def __init__(self, leave: Callable[[], NoReturn]) -> None:
        self._leave = leave
        self._handled = threading.Event()
        self._previous: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._wake, self._told = socket.socketpair()
        self._told.setblocking(False)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        self._earlier = signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)
        _watchers.append(self)
        for name in _SIGNALS:
            number = getattr(signal, name, None)
            handler = None if number is None else signal.getsignal(number)
            if number is not None and callable(handler):
                self._previous[number] = handler
                signal.signal(number, self._handle)

    def close(self) -> None:
        """Put the handlers back, unless others took their place."""
        for number, handler in self._previous.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, handler)
        _watchers.remove(self)
        signal.set_wakeup_fd(self._earlier)
        self._told.shutdown(socket.SHUT_RDWR)  # A forked process may hold it open.
        self._told.close()
        self._thread.join()
        self._wake.close()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._handled.set()
        self._previous[number](number, frame)

    def _watch(self) -> None:
        while numbers := self._wake.recv(64):
            if any(number in self._previous and signal.getsignal(number) == self._handle for number in numbers):
                if not self._handled.wait(_PATIENCE):
                    self._leave()
                self._handled.clear()


_watchers: list[_Watcher] = []


def _forget_in_a_child() -> None:
    """A forked process would tell its parent of its own signals."""
    if _watchers:
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_a_child)


def _copied_stderr(cleanup: contextlib.ExitStack) -> int | None:
    try:
        terminal = os.dup(2)
    except OSError:
        return None
    cleanup.callback(os.close, terminal)
    return terminal


def _leave(program: str, terminal: int | None) -> NoReturn:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
    if terminal is not None:
        with contextlib.suppress(OSError):
            os.write(terminal, f"{program}: stopped\n".encode())
    os._exit(STOPPED)


__all__ = ["STOPPED", "Background", "stoppable"]
