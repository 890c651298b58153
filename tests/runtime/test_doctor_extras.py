"""`samri-doctor` names the extras that are installed, and the line that installs each of the others."""

from __future__ import annotations

import json
import sys

import pytest
from click.testing import CliRunner

from samri_runtime.doctor import main
from samri_runtime.doctor._extras import Extra, extras_of, installed_extras
from samri_runtime.providers._wheels import Wheel

CPU_WHEEL = (Wheel("onnxruntime", "1.32.0", True),)
REQUIREMENTS = [
    "numpy>=1.26",
    "onnxruntime>=1.22; extra == 'cpu'",
    "onnxruntime-gpu[cuda,cudnn]>=1.22; extra == 'gpu'",
    "nibabel>=5.2; extra == 'io'",
    'opencv-python-headless (>=4.10) ; extra == "io"',
    "samri[io]; extra == 'train'",
    "torch>=2.10; extra == 'train'",
    "ruff; extra == 'dev'",
    "onnxruntime-directml>=1.22; (sys_platform == 'nowhere') and extra == 'directml'",
    f"nibabel>=5.2; sys_platform == '{sys.platform}' and extra == 'here'",
]
VERSIONS = {"onnxruntime": "1.32.0", "nibabel": "5.10.1", "opencv-python": "4.11.0.86", "torch": "2.9.1+cpu"}


def test_each_extra_is_installed_or_has_the_line_that_installs_it() -> None:
    found = {extra.name: extra for extra in extras_of(REQUIREMENTS, CPU_WHEEL, VERSIONS.get)}
    assert {name: str(extra) for name, extra in found.items()} == {
        "cpu": "installed",
        "directml": "not for this system",
        "gpu": "lacks onnxruntime-gpu>=1.22: run pip uninstall -y onnxruntime, then pip install 'samri[gpu]'",
        "here": "installed",
        "io": "installed",
        "train": "lacks torch>=2.10: run pip install 'samri[train]'",
    }


@pytest.mark.parametrize(
    ("version", "enough"), [("1.22", True), ("1.22.0", True), ("1.9", False), ("2", True), ("1.22.0.dev1", True)]
)
def test_versions_are_compared_as_numbers(version: str, enough: bool) -> None:
    (extra,) = extras_of(["onnx>=1.22.0; extra == 'x'"], (), lambda _: version)
    assert (not extra.missing) is enough


def test_the_doctor_shows_this_environments_extras() -> None:
    result = CliRunner().invoke(main, [])
    assert result.exit_code == 0
    assert "\nExtras\n" in result.stdout
    extras = json.loads(CliRunner().invoke(main, ["--json"]).stdout)["extras"]
    assert extras["io"] == extras["train"] == []
    assert Extra("io", (), None) in installed_extras(CPU_WHEEL)
