"""SAMRI's commands, called in this process."""

from __future__ import annotations

import click
from click.testing import CliRunner, Result


def call(command: click.Command, *arguments: object) -> Result:
    """What `command` does with these arguments, and what it prints."""
    return CliRunner().invoke(command, [str(argument) for argument in arguments], prog_name=command.name)
