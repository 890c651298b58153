"""The page on volumes: its command and its example do what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.pages import DOCS, blocks, command_lines, type_in

PAGE = DOCS / "volumes.md"


@pytest.mark.slow
def test_the_command_and_the_example_write_a_volume(folder: Path) -> None:
    (command,) = command_lines(PAGE)
    type_in(command)
    promised = {line.split("`")[1] for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| `scan_")}
    assert {file.name for file in (folder / "out").iterdir()} == promised
    names: dict[str, Any] = {}
    (example,) = blocks(PAGE, "python")
    exec(compile(example, PAGE.name, "exec"), names)
    assert names["result"].label_map.shape == names["result"].scan.grid
    assert {file.name for file in (folder / "out").iterdir()} == promised  # Its own results are replaced.
