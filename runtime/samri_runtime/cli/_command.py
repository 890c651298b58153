"""A click command with SAMRI's exit codes: errors in one line, and a stop that cleans up."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import Any

import click

from samri import SamriError, __version__
from samri.process import unwind_on_signals
from samri_runtime._interruptible import STOPPED, stoppable
from samri_runtime.cli._arguments import plain, refuse_repeated, split_numbers
from samri_runtime.cli._output import no_output, say, say_error, set_verbosity, shown_log, stdout_fails

_EPILOG = "Exit codes: 0 done, 1 a failure that the message explains, 2 wrong usage, 130 stopped."
_VERBOSITIES = {
    "--verbose": "Also print which files and providers are used, cache hits and the duration of each stage.",
    "--quiet": "Print results and errors only: no notes, no progress.",
}

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
            if not stdout_fails():
                raise
            click.echo(f"{self.name}: error: {no_output(error)}", err=True)
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
            with stoppable(self.name or "samri"), shown_log():
                return super().invoke(ctx)
        except SamriError as error:
            say_error(f"error: {error}")
            ctx.exit(1)
        except click.UsageError as error:
            say_error(f"error: {error.format_message()}")
            ctx.exit(2)
        except OSError as error:
            if error.errno not in _REMEDIES:
                raise
            say(f"error: {error.filename or 'a file'}: {os.strerror(error.errno)}: {_REMEDIES[error.errno]}")
            ctx.exit(1)
        except MemoryError:
            say_error("error: out of memory: close other programs, or work on a machine with more")
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
        settings.setdefault("epilog", _EPILOG)
        built = click.command(name, cls=Command, context_settings=context_settings, **settings)(function)
        for parameter in built.params:
            if isinstance(parameter.type, click.Choice):
                parameter.type.case_sensitive = False
        for flag, help_text in _VERBOSITIES.items():
            option = click.option(
                flag, flag[1:3], is_flag=True, expose_value=False, callback=set_verbosity, help=help_text
            )
            built = option(built)
        return click.version_option(__version__, prog_name=name)(built)

    return decorate
