"""Odd places as the value of each path option: one line at once, whatever the command."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest

from tests.fuzz.targets_calls import COMMANDS
from tests.fuzz.trial import invoke
from tests.support.scans import brain_like, save_nifti

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pipes and links as POSIX has them")

# What the other options of a command are when one of its paths is odd. The inputs of what takes long don't exist.
OTHERS = {
    "samri-run": {"model": "samri-tiny", "source": "scan.nii", "output": "out"},
    "samri-export": {"checkpoint": "missing.pth", "output": "bundle"},
    "samri-doctor": {},
    "samri-bench": {"model": "missing"},
    "samri-prepare": {"source": "missing", "output": "data"},
    "samri-embed": {"data_dir": "missing", "save_dir": "stores", "checkpoint": "missing.pth"},
    "samri-train": {"embedding_dirs": "missing", "checkpoint": "missing.pth", "save_dir": "trained"},
    "samri-evaluate": {"models": "missing.pth", "output": "report", "data_dir": "missing"},
}
PLACES = ("loop", "loop/below", "pipe", "pipe.nii.gz", "pipe.pth", "nowhere", "scan.nii/below", "of pipes", "of loops")
PLACES += ("n" * 300, "n" * 5000, "folder/" * 1000, "b\udcff.nii", "/dev/zero", "/dev/null")


def _path_options() -> Iterator[object]:
    for command in COMMANDS:
        for option in command.params:
            if isinstance(option.type, click.Path):
                yield pytest.param(command, option, id=f"{command.name} {max(option.opts, key=len)}")


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with all those places in it."""
    monkeypatch.chdir(tmp_path)
    save_nifti(tmp_path / "scan.nii", brain_like((24, 20, 5)), sform=np.eye(4))
    for name in ("pipe", "pipe.nii.gz", "pipe.pth"):
        os.mkfifo(name)
    for link, goal in (("loop", "loop"), ("nowhere", "missing")):
        (tmp_path / link).symlink_to(goal)
    names = ("manifest.json", "store.json", "last.pth", "dataset.json", "dataset_description.json", "a_img_0.nii.gz")
    for folder in ("of pipes", "of loops"):
        (tmp_path / folder).mkdir()
        for name in (*names, "a_seg_0.nii.gz"):
            if folder == "of pipes":
                os.mkfifo(tmp_path / folder / name)
            else:
                (tmp_path / folder / name).symlink_to(name)
    return tmp_path


@pytest.mark.parametrize(("command", "option"), list(_path_options()))
def test_an_odd_place_is_one_plain_line_at_once(places: Path, command: click.Command, option: click.Option) -> None:
    others = OTHERS[command.name or ""]
    of_slice = ["--slice", 2, "--box", 3, 3, 15, 14] if command.name == "samri-run" else []
    for place in PLACES:
        arguments: list[object] = []
        for each in command.params:
            if each is option or each.name in others:
                arguments += [max(each.opts, key=len), place if each is option else others[each.name or ""]]
        invoke(command, *arguments, *of_slice)
