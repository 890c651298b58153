"""How far the work is, how fast it goes, how long it will take: a bar for a person, a line now and then for a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from samri_runtime.cli import say

_SECONDS_BETWEEN_LINES = 60.0


class Progress:
    """Counts slices, on stderr; a context manager.

    Args:
        total: Slices of this process's share.
        done: How many of them were there before.
    """

    def __init__(self, total: int, done: int) -> None:
        self._total = total
        self._done = done
        self._worked = 0
        self._started = self._said = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self._total, initial=self._done, unit="slice", dynamic_ncols=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def skip(self, count: int) -> None:
        """`count` slices turned out to be done already: they say nothing about the rate."""
        self._done += count
        if self._bar is not None:
            self._bar.initial += count
            self._bar.update(count)

    def advance(self, count: int) -> None:
        """`count` slices were embedded."""
        self._done += count
        self._worked += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._said >= _SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            say(self.line())

    def line(self) -> str:
        """The state in words."""
        rate = self._worked / max(time.monotonic() - self._started, 1e-9)
        left = duration((self._total - self._done) / rate) if rate else "an unknown time"
        return f"{self._done} of {self._total} slices, {rate:.3g} a second, {left} left"


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
