"""docs/cache.md: its commands and its Python, run as they stand, and what it states about keys and files."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from samri_runtime.cache import DEFAULT_MAX_BYTES, _key
from tests.support.pages import DOCS, blocks, command_lines, type_in
from tests.support.scans import brain_like

PAGE = DOCS / "cache.md"


def test_the_second_command_of_the_page_answers_from_the_cache(folder: Path) -> None:
    said = [type_in(line).stderr.splitlines()[-1] for line in command_lines(PAGE)]
    assert [line.endswith("embedding from the cache") for line in said] == [False, True]


def test_the_python_of_the_page_works(folder: Path) -> None:
    names = {"slice_2d": brain_like((150, 170))}
    for block in blocks(PAGE, "python"):
        exec(compile(block, "docs/cache.md", "exec"), names)
    assert np.asarray(names["mask"]).shape == (150, 170)


def test_the_page_names_every_harmless_option_and_the_default_size() -> None:
    sentence = re.search(r"that can't change a number \((.*?)\)", PAGE.read_text("utf-8"), re.DOTALL)
    assert sentence is not None
    assert set(re.findall(r"`(\w+)`", sentence[1])) == _key._HARMLESS
    assert DEFAULT_MAX_BYTES == 4e9
    assert "4 GB by default" in PAGE.read_text("utf-8")
