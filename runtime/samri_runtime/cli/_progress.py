"""How far a command is: a line for what takes over two seconds, and on a terminal a bar for what can be counted."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import click

from samri_runtime.cli._output import LOG, line_writer, say, verbosity

_SILENT_S = 2.0
_BETWEEN_LINES_S = 60.0
_LOGGED_S = 0.01


class Stages:
    """The stages of work of unknown duration, as a context manager.

    A stage that takes over two seconds is named on stderr, and again each minute; `--verbose` tells how long each took.
    """

    def __init__(self) -> None:
        self._stage: str | None = None
        self._began = self._next = 0.0
        self._over = False
        self._changed = threading.Condition()
        self._cleanup = contextlib.ExitStack()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Stages:
        if verbosity() != "quiet":
            write = self._cleanup.enter_context(line_writer())
            self._thread = threading.Thread(target=self._watch, args=(write,), daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._changed:
            self._log_duration()
            self._over = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        self._cleanup.close()

    def begin(self, stage: str) -> None:
        """Begin a stage, such as "encoding the slice"; it is named only if it lasts."""
        self._begin(stage, _SILENT_S)

    def say(self, line: str) -> None:
        """Begin a stage and name it at once; a line that starts with "note: " is only printed."""
        say(line)
        if not line.startswith("note: "):
            self._begin(line, _BETWEEN_LINES_S)

    def end(self) -> None:
        """End the current stage without beginning another."""
        self._begin(None, 0)

    def _begin(self, stage: str | None, silent: float) -> None:
        with self._changed:
            self._log_duration()
            self._stage, self._began = stage, time.monotonic()
            self._next = self._began + silent
            self._changed.notify()

    def _log_duration(self) -> None:
        lasted = time.monotonic() - self._began
        if self._stage is not None and lasted >= _LOGGED_S:
            LOG.info("%s: %.2f s", self._stage, lasted)

    def _watch(self, write: Callable[[str], None]) -> None:
        with self._changed:
            while not self._over:
                now = time.monotonic()
                if self._stage is None or now < self._next:
                    self._changed.wait(None if self._stage is None else self._next - now)
                    continue
                lasted = now - self._began
                write(self._stage if lasted < _BETWEEN_LINES_S else f"{self._stage}: {duration(lasted)} so far")
                self._next = now + _BETWEEN_LINES_S


class ProgressBar:
    """How many of a number of things are done, on stderr: a bar on a terminal, else a line each minute.

    Args:
        total: All of them; 0 where that isn't known, unless `reach` tells.
        unit: What one is called.
        done: How many of them were there before.
    """

    def __init__(self, total: int, unit: str, done: int = 0) -> None:
        self._total = total
        self._unit = unit
        self._done = done
        self._worked = 0
        self._started = time.monotonic()
        self._next = self._started + _SILENT_S
        self._cleanup = contextlib.ExitStack()
        self._bar: Any = None

    def __enter__(self) -> ProgressBar:
        self._open_bar()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._cleanup.close()

    def _open_bar(self) -> None:
        if self._total > self._done and verbosity() != "quiet" and sys.stderr is not None and sys.stderr.isatty():
            # The bar shows what is left: click reckons the time by all that it has seen done.
            bar = click.progressbar(length=self._total - self._done, file=sys.stderr, show_pos=True, show_eta=True)
            self._bar = self._cleanup.enter_context(bar)

    def skip(self, count: int) -> None:
        """`count` things turned out to be done already: they tell nothing of the rate."""
        self._done += count
        if self._bar is not None:
            self._bar.length -= count

    def advance(self, count: int = 1) -> None:
        """`count` things were done."""
        self._done += count
        self._worked += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + _BETWEEN_LINES_S
            say(self.line())

    def reach(self, done: int, total: int) -> None:
        """`done` things of `total` are done."""
        if not self._total:
            self._total = total
            self._open_bar()
        self.advance(done - self._done)

    def line(self) -> str:
        """The state in words."""
        rate = self._worked / max(time.monotonic() - self._started, 1e-9)
        if not self._total:
            return f"{self._done} {self._unit}s, {rate:.3g} per second"
        remaining = duration((self._total - self._done) / rate) if rate else "unknown time"
        return f"{self._done} of {self._total} {self._unit}s, {rate:.3g} per second, {remaining} left"


def duration(seconds: float) -> str:
    """`2 d 3 h`, `3 h 12 min`, `12 min`, `40 s`."""
    minutes, hours, days = round(seconds / 60), seconds / 3600, seconds / 86400
    if seconds < 90:
        return f"{seconds:.0f} s"
    if hours < 2:
        return f"{minutes} min"
    if days < 2:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{round(hours) // 24} d {round(hours) % 24} h"
