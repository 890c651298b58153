"""No command lets ONNX Runtime's telemetry begin, whatever is imported first: nothing of it is left in a home."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from samri.manifest import FILE_NAME
from samri_runtime.models import find
from tests.support.parity import picture

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "samri-run": "samri_runtime.run",
    "samri-doctor": "samri_runtime.doctor",
    "samri-bench": "samri_runtime.bench._command",
    "samri-export": "samri_export.command",
    "samri-prepare": "samri_training.prepare",
    "samri-embed": "samri_training.embed",
    "samri-train": "samri_training.train",
    "samri-evaluate": "samri_training.evaluate",
}
# What would keep it off without SAMRI.
OFF = {"ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED", "CI", "GITHUB_ACTIONS", "GITLAB_CI"}

# Python imports it before anything else, in worker processes too.
SITE = """
import importlib.abc, os, sys

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            with open(os.environ["SEEN"], "a") as file:
                file.write(os.environ.get("ORT_DISABLE_TELEMETRY", "unset") + chr(10))
        return None

sys.meta_path.insert(0, Watch())
"""

Start = Callable[..., None]


class Home:
    """An empty home, in which a Python process is watched."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen = folder / "home", folder / "seen"
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(SITE)
        self.folder.mkdir()
        ours = {name: value for name, value in os.environ.items() if name not in OFF and not name.startswith("SAMRI_")}
        places = {"HOME": "", "XDG_CACHE_HOME": ".cache", "XDG_CONFIG_HOME": ".config", "XDG_DATA_HOME": ".local/share"}
        places |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), "tmp")
        self.environment = {**ours, **{name: str(self.folder / place) for name, place in places.items()}}
        (self.folder / "tmp").mkdir()
        sources = (folder / "site", ROOT, *(ROOT / part for part in ("runtime", "export", "training")))
        self.environment |= {"PYTHONPATH": os.pathsep.join(map(str, sources)), "SEEN": str(self.seen)}

    def run(self, command: str, *arguments: object) -> None:
        code = f"from {COMMANDS[command]} import main; main(prog_name={command!r})"
        self.python("-c", code, *arguments)

    def python(self, *arguments: object) -> None:
        done = subprocess.run(
            [sys.executable, *map(str, arguments)], env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]

    def check(self, *, imported: bool) -> None:
        """Onnxruntime was imported, or need not have been, with its telemetry off; nothing of it lies in the home."""
        seen = self.seen.read_text().split() if self.seen.exists() else []
        assert set(seen) == {"1"} or (seen == [] and not imported)
        found = [path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file()]
        foreign = [str(path) for path in found if path.parts[:2] not in {(".cache", "samri"), (".cache", "matplotlib")}]
        assert not [name for name in foreign if "matplotlib" not in name]
        assert not [path for path in found if "onnx" in str(path).lower() or "microsoft" in str(path).lower()]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    nib.save(nib.Nifti1Image(picture((48, 40), 1)[..., None], np.eye(4)), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


@pytest.mark.slow
def test_runs_of_the_runtimes_commands(home: Home, scan: Path, tmp_path: Path) -> None:
    home.run("samri-run", "-i", scan, "-o", tmp_path / "out", "--slice", 0, "--box", 5, 5, 30, 30)
    home.run("samri-doctor")
    home.run("samri-bench", "--rounds", 1, "--encodes", 1, "--decodes", 1, "--boxes", 1, "--provider", "cpu")
    home.check(imported=True)


def test_the_minimal_example(home: Home, tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", picture((48, 40), 1))
    example = ROOT / "examples" / "python_minimal" / "segment.py"
    home.python(example, find("samri-tiny"), tmp_path / "image.npy", 5, 5, 30, 30, tmp_path / "mask.npy")
    home.check(imported=True)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["onnxsim", "monai.networks.utils"])
def test_what_imports_onnxruntime_before_us_finds_it_off(home: Home, first: str) -> None:
    package = "samri_export" if first == "onnxsim" else "samri_training"
    home.python("-c", f"import {package}; import {first}")
    home.check(imported=True)


@pytest.mark.exhaustive  # Seven processes that import PyTorch.
def test_runs_of_the_training_and_exporting_commands(home: Home, checkpoint: Path, tmp_path: Path) -> None:
    images, labels = tmp_path / "volumes" / "imagesTr", tmp_path / "volumes" / "labelsTr"
    images.mkdir(parents=True)
    labels.mkdir()
    for patient in range(3):
        volume = np.stack([picture((48, 40), 10 * patient + z) for z in range(2)], axis=2)
        nib.save(nib.Nifti1Image(volume, np.eye(4)), images / f"knee_{patient:03d}_0000.nii.gz")
        nib.save(nib.Nifti1Image((volume > 150).astype(np.uint8), np.eye(4)), labels / f"knee_{patient:03d}.nii.gz")
    home.run("samri-prepare", "--input", tmp_path / "volumes", "--output", tmp_path / "slices", "--plane", "axial")
    home.check(imported=False)
    home.run("samri-export", "-c", checkpoint, "-o", tmp_path / "bundle", "--profile", "samri", "--verify", "quick")
    home.check(imported=True)
    assert (tmp_path / "bundle" / FILE_NAME).is_file()
    slices = ["--data-dir", tmp_path / "slices"]
    home.run("samri-embed", *slices, "--save-dir", tmp_path / "by bundle", "--model", tmp_path / "bundle")
    home.run("samri-embed", *slices, "--save-dir", tmp_path / "store", "--checkpoint", checkpoint, "--device", "cpu")
    train = ["--checkpoint", checkpoint, "--save-dir", tmp_path / "run", "--device", "cpu", "--epochs", 1]
    store = next(path.parent for path in sorted((tmp_path / "store").rglob("store.json")))
    home.run("samri-train", "--embedding-dir", store, *train, "--val-every", 0)
    models = ["--model", f"torch={checkpoint}", "--model", f"onnx={tmp_path / 'bundle'}"]
    home.run("samri-evaluate", *models, *slices, "--output", tmp_path / "evaluation")
    home.check(imported=True)
