"""The code blocks of a page of documentation, to be run as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from click.testing import Result

from samri_export.command import main as samri_export
from samri_runtime.doctor import main as samri_doctor
from samri_runtime.run import main as samri_run
from samri_training.embed import main as samri_embed
from samri_training.evaluate import main as samri_evaluate
from samri_training.prepare import main as samri_prepare
from samri_training.train import main as samri_train
from tests.support.commands import call

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_COMMANDS = {
    "samri-run": samri_run,
    "samri-doctor": samri_doctor,
    "samri-export": samri_export,
    "samri-prepare": samri_prepare,
    "samri-embed": samri_embed,
    "samri-train": samri_train,
    "samri-evaluate": samri_evaluate,
}


def blocks(page: Path, language: str) -> list[str]:
    """The page's blocks of code in `language`."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def command_lines(page: Path) -> list[str]:
    """The page's shell commands, one per line."""
    return [line for block in blocks(page, "sh") for line in block.splitlines() if line.strip()]


def type_in(command_line: str) -> Result:
    """Run a command line in this process; it must succeed."""
    program, *arguments = shlex.split(command_line)
    result = call(_COMMANDS[program], *arguments)
    assert result.exit_code == 0, f"{command_line}\n{result.stderr}"
    return result
