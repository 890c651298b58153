"""What C and C++ libraries write to stderr, where Python has no hook for it: file descriptor 2 is redirected."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator

_redirection = threading.Lock()


@contextlib.contextmanager
def captured_stderr() -> Iterator[list[str]]:
    """Yield a list that holds the text of stderr after the block, as its one element.

    The redirection holds for the whole process, so keep it short; one thread at a time. What other threads wrote
    meanwhile is in the text too: pass on what isn't yours with `pass_on`. Without a stderr (a windowed program) or
    room for a temporary file the list stays empty.
    """
    texts: list[str] = []
    with _redirection, contextlib.ExitStack() as cleanup:
        try:
            file = cleanup.enter_context(tempfile.TemporaryFile())
            stderr = os.dup(2)
        except OSError:
            yield texts
            return
        cleanup.callback(os.close, stderr)
        _flush()
        os.dup2(file.fileno(), 2)
        try:
            yield texts
        finally:
            _flush()
            os.dup2(stderr, 2)
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))


def pass_on(text: str) -> None:
    """Write text that was captured to stderr after all."""
    if text:
        with contextlib.suppress(OSError):
            os.write(2, text.encode())


def _flush() -> None:
    # There is no sys.stderr in a windowed program.
    if sys.stderr is not None:
        sys.stderr.flush()
