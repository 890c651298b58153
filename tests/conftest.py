"""Small real things that many tests share: a seeded SAM, its checkpoint, its exported bundle."""

from __future__ import annotations

import os
from pathlib import Path

# Before anything imports onnxruntime: samri_runtime sets these itself, but a test may import onnxruntime first.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("ORT_TELEMETRY_DISABLED", "1")

import hypothesis
import pytest
import torch
from segment_anything.modeling import Sam

from samri_export import export_bundle
from samri_runtime.cli import _progress as progress
from tests.support.sams import SMALL, save_checkpoint, seeded_sam
from tests.support.sessions import made_once

# `make test-fast` draws a quarter of the examples, `make test-all` ten times as many. See tests/support/examples.py.
for profile, examples in {"usual": 100, "fast": 25, "exhaustive": 1000}.items():
    hypothesis.settings.register_profile(profile, max_examples=examples, deadline=None)
hypothesis.settings.load_profile("usual")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--provider cuda` asks a GPU, where tests are written for one."""
    parser.addoption("--provider", default="cpu", help="what the tests of static shapes run on: cpu, cuda, ...")
    fuzz = parser.getgroup("fuzz", "damaged and hostile inputs (tests/fuzz)")
    fuzz.addoption("--fuzz-inputs", type=int, help="inputs for each target; a few by default")
    fuzz.addoption("--fuzz-seed", type=int, default=0, help="decides all inputs")
    fuzz.addoption("--fuzz-target", action="append", help="this target only; repeatable")
    fuzz.addoption("--fuzz-only", type=int, help="this input only, of each target")


def pytest_configure(config: pytest.Config) -> None:
    """A GPU that nobody asked for stays hidden: the tests say what must happen where none works."""
    if config.getoption("provider") == "cpu":
        os.environ |= {"CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1"}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The models of these tests are so small that sharing a layer among threads costs more than computing it."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def quick_stages_are_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage is named where it takes over two seconds, which on a busy machine any may: in these tests, never."""
    monkeypatch.setattr(progress, "_SILENT_S", 600.0)


@pytest.fixture(scope="session")
def small_sam() -> Sam:
    """A seeded SAM-shaped model that exports in seconds. Don't change its weights."""
    return seeded_sam(SMALL)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, small_sam: Sam) -> Path:
    """`small_sam` as an ordinary .pth file."""
    return made_once(tmp_path_factory, "small.pth", lambda path: save_checkpoint(path, small_sam))


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """`checkpoint` as a bundle with the `samri` profile. Don't write into it."""
    return made_once(
        tmp_path_factory, "small", lambda folder: export_bundle(checkpoint, folder, profile="samri", verify="off")
    )


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins without cached embeddings, and leaves none in the user's folders."""
    monkeypatch.setenv("SAMRI_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def own_settings(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins without tuned settings, and leaves none in the user's folders."""
    monkeypatch.setenv("SAMRI_CONFIG_DIR", str(tmp_path_factory.mktemp("config")))
