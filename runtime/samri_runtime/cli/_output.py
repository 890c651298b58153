"""What a command prints: results on stdout, everything else on stderr, and how much of that.

Names in files from elsewhere reach the screen, so control characters never do: they are printed as escapes.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, TextIO

import click

from samri.errors import OutputError
from samri_runtime.cli._arguments import plain

Verbosity = Literal["quiet", "normal", "verbose"]

LOG = logging.getLogger("samri")
"""Where the libraries log what `--verbose` shows: files opened, providers, the cache, durations."""

_VERBOSITY = "samri.verbosity"
# Surrogates are the bytes of file names that are no text; `emit` prints those bytes.
_STEERING = re.compile(r"[^\udc80-\udcff\t\n\x20-\x7e]")


def verbosity() -> Verbosity:
    """How much the running command may print on stderr."""
    context = click.get_current_context(silent=True)
    return context.meta.get(_VERBOSITY, "normal") if context else "normal"


def set_verbosity(context: click.Context, option: click.Parameter, is_set: bool) -> None:
    """Callback of `--verbose` and `--quiet`."""
    if is_set and context.meta.setdefault(_VERBOSITY, option.name) != option.name:
        raise click.UsageError("give --verbose or --quiet, not both.")


def emit(text: str) -> None:
    """Results, on stdout, in the encoding of file names where stdout's own can't hold one.

    Raises:
        OutputError: They can't be printed. After a closed pipe (`| head`), click ends the command silently.
    """
    text = _STEERING.sub(_escaped, text)
    try:
        try:
            click.echo(text)
        except UnicodeEncodeError:
            click.echo(os.fsencode(text))
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        stdout_fails()
        raise OutputError(no_output(error)) from error


def _escaped(character: re.Match[str]) -> str:
    text = character[0]
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def say(line: str) -> None:
    """A note or a line of progress for the person at the keyboard, on stderr; nothing with `--quiet`."""
    if verbosity() != "quiet":
        say_error(line)


def say_error(line: str) -> None:
    """A line on stderr that is printed with `--quiet` too: why the command fails, or what is wrong with its results."""
    click.echo(_prefix() + plain(line), err=True)


def _prefix() -> str:
    context = click.get_current_context(silent=True)
    return f"{context.find_root().command.name}: " if context and context.find_root().command.name else ""


@contextlib.contextmanager
def line_writer() -> Iterator[Callable[[str], None]]:
    """Yield a function like `say_error` for any thread; its lines arrive even while file descriptor 2 is redirected."""
    prefix = _prefix()
    with _lasting_stderr() as stream:

        def write(line: str) -> None:
            with contextlib.suppress(OSError, ValueError):  # A line about the work must not end it.
                click.echo(prefix + plain(line), file=stream)

        yield write


@contextlib.contextmanager
def _lasting_stderr() -> Iterator[TextIO]:
    if sys.stderr is None:  # A windowed program.
        with Path(os.devnull).open("w", encoding="utf-8") as sink:
            yield sink
        return
    try:
        copy = None if sys.platform == "win32" else os.dup(sys.stderr.fileno())
    except (OSError, ValueError):
        copy = None
    if copy is None:
        yield sys.stderr
        return
    with os.fdopen(copy, "w", 1, encoding=sys.stderr.encoding, errors="backslashreplace") as stream:
        yield stream


@contextlib.contextmanager
def shown_log() -> Iterator[None]:
    """In this block, what the libraries log goes to stderr if the command was told `--verbose`."""
    if verbosity() != "verbose":
        yield
        return
    with line_writer() as write:
        handler = _Lines(write)
        before = LOG.level
        LOG.addHandler(handler)
        LOG.setLevel(logging.DEBUG)
        try:
            yield
        finally:
            LOG.removeHandler(handler)
            LOG.setLevel(before)


class _Lines(logging.Handler):
    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__()
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        self._write(record.getMessage())


def no_output(error: OSError) -> str:
    """The message where stdout takes nothing more."""
    reason = os.strerror(error.errno) if error.errno is not None else str(error)
    return f"cannot print the results: {reason}: send stdout elsewhere"


def stdout_fails() -> bool:
    """Whether stdout takes no line end; then all it still holds is dropped, or Python's own exit would fail on it."""
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, sys.stdout.fileno())
        os.close(sink)
        return True
    return False
