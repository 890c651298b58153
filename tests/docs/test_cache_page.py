"""docs/cache.md: its commands and its Python, run as they stand, and what it states about keys and files."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from samri_runtime.cache import DEFAULT_MAX_BYTES, _key
from samri_runtime.run import main
from scan_factory import OBLIQUE, brain_like, save_nifti

PAGE = (Path(__file__).parents[2] / "docs" / "cache.md").read_text("utf-8")


@pytest.fixture
def folder(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(bundle, tmp_path / "bundle")
    save_nifti(tmp_path / "scan.nii.gz", brain_like((150, 170, 100)), sform=OBLIQUE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_second_command_of_the_page_answers_from_the_cache(folder: Path) -> None:
    said = []
    for line in "".join(blocks("sh")).splitlines():
        program, *arguments = shlex.split(line)
        assert program == "samri-run"
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, done.stderr
        said.append(done.stderr.splitlines()[-1].endswith("embedding from the cache"))
    assert said == [False, True]


def test_the_python_of_the_page_works(folder: Path) -> None:
    names = {"slice_2d": brain_like((150, 170))}
    for block in blocks("python"):
        exec(compile(block, "docs/cache.md", "exec"), names)
    assert np.asarray(names["mask"]).shape == (150, 170)


def test_the_page_names_every_harmless_option_and_the_default_size() -> None:
    sentence = re.search(r"that can't change a number \((.*?)\)", PAGE, re.DOTALL)
    assert sentence is not None
    assert set(re.findall(r"`(\w+)`", sentence[1])) == _key._HARMLESS
    assert DEFAULT_MAX_BYTES == 4e9
    assert "4 GB by default" in PAGE
