"""What a command prints: results on stdout, everything else on stderr."""

from __future__ import annotations

import errno
import os
import sys

import click

from samri.errors import OutputError
from samri_runtime.cli._arguments import plain


def emit(text: str) -> None:
    """Results, on stdout, in the encoding of file names where stdout's own can't hold one.

    Raises:
        OutputError: They can't be printed. Whoever closed the pipe, such as `head`, wants no message: click ends.
    """
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


def say(line: str) -> None:
    """One line for the person at the keyboard, on stderr: stdout belongs to results."""
    context = click.get_current_context(silent=True)
    prefix = f"{context.find_root().command.name}: " if context and context.find_root().command.name else ""
    click.echo(prefix + plain(line), err=True)


def no_output(error: OSError) -> str:
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
