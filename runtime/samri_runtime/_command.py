"""What all commands share: errors as one plain line, exit codes, and a stop that cleans up."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from samri import SamriError, __version__
from samri.errors import OutputError, ProviderError
from samri.process import unwind_on_signals
from samri_runtime._arguments import plain, refuse_repeated, split_numbers
from samri_runtime._interruptible import STOPPED, stoppable
from samri_runtime.providers import parse_provider_options


# What the system refuses wherever it is asked: states of the machine, and no faults of the program.
_REMEDIES = {
    errno.ENAMETOOLONG: "check the path",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room there, or set TMPDIR to another disk"),
    errno.EROFS: "name a place that can be written",
}


class Command(click.Command):
    """A click command that ends with 0 (done), 1 (a failure the user can act on), 2 (wrong usage) or 130 (stopped).

    A `SamriError` becomes one line on stderr. SIGTERM and SIGHUP unwind the stack as Ctrl-C does.
    """

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run as click does; a full disk behind stdout, which `--help` can meet too, is one line."""
        try:
            return super().main(*args, **extra)
        except OSError as error:
            if not _stdout_fails():
                raise
            click.echo(f"{self.name}: error: {_no_output(error)}", err=True)
            sys.exit(1)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Parse the command line; what can't be parsed is one line too, where click would print several."""
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            click.echo(f"{self.name}: error: {plain(error.format_message())}", err=True)
            raise click.exceptions.Exit(2) from error

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does, and refuse what it would silently drop."""
        args = split_numbers(self, ctx, args)
        rest = super().parse_args(ctx, list(args))
        refuse_repeated(ctx, args)
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; see the class."""
        restore = unwind_on_signals()
        try:
            with stoppable(self.name or "samri"):
                return super().invoke(ctx)
        except SamriError as error:
            say(f"error: {error}")
            ctx.exit(1)
        except click.UsageError as error:
            say(f"error: {error.format_message()}")
            ctx.exit(2)
        except OSError as error:
            if error.errno not in _REMEDIES:
                raise
            say(f"error: {error.filename or 'a file'}: {os.strerror(error.errno)}: {_REMEDIES[error.errno]}")
            ctx.exit(1)
        except MemoryError:
            say("error: out of memory: close other programs, or work on a machine with more")
            ctx.exit(1)
        except KeyboardInterrupt:
            say("stopped")
            ctx.exit(STOPPED)
        finally:
            restore()


def command(name: str, **settings: Any) -> Callable[[Callable[..., None]], Command]:
    """Decorator like `click.command`, with SAMRI's exit codes, `-h` and `--version`."""

    def decorate(function: Callable[..., None]) -> Command:
        context_settings = {
            "help_option_names": ["-h", "--help"],
            "max_content_width": 110,
            # The published scripts spell options with underscores.
            "token_normalize_func": lambda token: token.replace("_", "-"),
        }
        made = click.command(name, cls=Command, context_settings=context_settings, **settings)(function)
        for option in made.params:
            if isinstance(option.type, click.Choice):
                option.type.case_sensitive = False
        return click.version_option(__version__, prog_name=name)(made)

    return decorate


def provider_options_of(_context: click.Context, _option: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str]:
    """Callback of `--provider-option`: its key=value pairs as a dictionary; a malformed one is wrong usage."""
    try:
        return parse_provider_options(pairs)
    except ProviderError as error:
        raise click.BadParameter(f"{error}.") from error


class GivenPath(click.Path):
    """A path; an empty one, which a script's unset variable makes, isn't taken for the current folder."""

    def __init__(self, path_type: type = Path) -> None:
        super().__init__(path_type=path_type)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The text as a path."""
        if value in ("", b""):
            self.fail("the path is empty.", param, ctx)
        return super().convert(value, param, ctx)


_SUFFIXES_OF_FILES = (
    *(".nii", ".gz", ".mgz", ".nrrd", ".dcm", ".png", ".jpg", ".jpeg", ".tif", ".tiff"),
    *(".json", ".csv", ".md", ".txt", ".npz", ".npy", ".onnx", ".pth", ".pt", ".safetensors"),
)


class OutputFolder(GivenPath):
    """A folder to make or to write into; a name that looks like a file's is wrong usage, unless there is such a folder.

    Programs that write one file take its name in this place, and a folder called `mask.nii.gz` helps nobody.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The text as a path."""
        path = super().convert(value, param, ctx)
        if path.name.lower().endswith(_SUFFIXES_OF_FILES) and not path.is_dir():
            self.fail(f"{path} looks like a file: give a folder.", param, ctx)
        return path


class GivenModel(GivenPath):
    """A bundle's folder or a model's name, as it was typed: `./samri-tiny` and `samri-tiny` are two things."""

    def __init__(self) -> None:
        super().__init__(path_type=str)


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
        _stdout_fails()
        raise OutputError(_no_output(error)) from error


def say(line: str) -> None:
    """One line for the person at the keyboard, on stderr: stdout belongs to results."""
    context = click.get_current_context(silent=True)
    prefix = f"{context.find_root().command.name}: " if context and context.find_root().command.name else ""
    click.echo(prefix + plain(line), err=True)


def _no_output(error: OSError) -> str:
    reason = os.strerror(error.errno) if error.errno is not None else str(error)
    return f"cannot print the results: {reason}: send stdout elsewhere"


def _stdout_fails() -> bool:
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


__all__ = ["Command", "GivenModel", "GivenPath", "OutputFolder", "command", "emit", "provider_options_of", "say"]
