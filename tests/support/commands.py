"""SAMRI's commands, called in this process or in a copy of it."""

from __future__ import annotations

import multiprocessing
from multiprocessing.process import BaseProcess

import click
from click.testing import CliRunner, Result


def call(command: click.Command, *arguments: object) -> Result:
    """What `command` does with these arguments, and what it prints."""
    return CliRunner().invoke(command, [str(argument) for argument in arguments], prog_name=command.name)


def start(command: click.Command, *arguments: object) -> BaseProcess:
    """Run `command` in a copy of this process, to be killed or joined; needs fork.

    A fresh interpreter would import PyTorch again, which takes longer than the command itself.
    """
    process = multiprocessing.get_context("fork").Process(
        target=command.main, args=([str(argument) for argument in arguments], command.name)
    )
    process.start()
    return process
