"""The proof that docs/bundle.md suffices: a host that shares no code with samri gives the same masks."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samri_runtime import Predictor, models
from tests.support.parity import agree, covers_a_part, picture

HOST = Path(__file__).parents[2] / "examples" / "python_minimal" / "segment.py"


def test_it_is_short_and_imports_numpy_and_onnxruntime_alone() -> None:
    source = HOST.read_text()
    assert len(source.splitlines()) < 80
    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert imported - set(sys.stdlib_module_names) == {"numpy", "onnxruntime"}


def run_host(bundle: Path, folder: Path, scan: np.ndarray, box: list[float]) -> subprocess.CompletedProcess[str]:
    np.save(folder / "scan.npy", scan)
    arguments = [str(bundle), str(folder / "scan.npy"), *map(str, box), str(folder / "mask.npy")]
    return subprocess.run([sys.executable, str(HOST), *arguments], check=False, capture_output=True, text=True)


def its_mask_is_predictors(bundle: Path, folder: Path, scan: np.ndarray, box: list[float]) -> np.ndarray:
    """The host's mask, (H, W), after comparing it with `Predictor`'s."""
    result = run_host(bundle, folder, scan, box)
    assert result.returncode == 0, result.stderr
    predictor = Predictor(bundle, provider="cpu")
    expected = predictor.predict(predictor.encode(scan), boxes=[box]).masks
    mask = np.load(folder / "mask.npy")
    agree(mask[None].astype(np.float32), expected.astype(np.float32))
    return mask


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(180, 120), (90, 200), (300, 260), (24, 300), (1, 1000), (1000, 1), (700, 6)])
def test_its_mask_is_predictors(bundle: Path, tmp_path: Path, shape: tuple[int, int]) -> None:
    scan = picture(shape).astype(np.float32) * 3.7 + 100
    height, width = shape
    box = [0.21 * width, 0.13 * height, 0.83 * width, 0.77 * height]
    covers_a_part(its_mask_is_predictors(bundle, tmp_path, scan, box))


def test_it_runs_the_model_that_comes_with_samri(tmp_path: Path) -> None:
    its_mask_is_predictors(models.find("samri-tiny"), tmp_path, picture((180, 120)), [20, 30, 90, 140])


@pytest.mark.slow
def test_a_box_that_reaches_beyond_the_image_is_clipped(bundle: Path, tmp_path: Path) -> None:
    scan = picture((120, 180)).astype(np.float32)
    covers_a_part(its_mask_is_predictors(bundle, tmp_path, scan, [-60.5, 30, 500, 1e4]))
    clipped = np.load(tmp_path / "mask.npy")
    run_host(bundle, tmp_path, scan, [0, 30, 180, 120])
    assert np.array_equal(np.load(tmp_path / "mask.npy"), clipped)


def test_a_constant_image_has_a_mask_too(bundle: Path, tmp_path: Path) -> None:
    its_mask_is_predictors(bundle, tmp_path, np.full((60, 90), 41.5), [10, 10, 50, 40])


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def leave_the_folder(bundle: Path) -> None:
    shutil.copyfile(bundle / "encoder.onnx", bundle.parent / "encoder.onnx")
    edit(bundle, lambda manifest: manifest["graphs"][0].update(path="../encoder.onnx"))


SPOILERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "changed encoder": (lambda bundle: flip_a_byte(bundle / "encoder.onnx"), "encoder.onnx is not the file"),
    "changed decoder": (lambda bundle: flip_a_byte(bundle / "decoder.onnx"), "decoder.onnx is not the file"),
    "missing decoder": (lambda bundle: (bundle / "decoder.onnx").unlink(), "decoder.onnx is not the file"),
    "path that leaves the folder": (leave_the_folder, "is not the file"),
    "another format": (lambda bundle: edit(bundle, lambda values: values.update(format="bundle")), "format version 1"),
    "newer major version": (
        lambda bundle: edit(bundle, lambda values: values.update(format_version="2.0")),
        "format version 1",
    ),
    "major version of two digits": (
        lambda bundle: edit(bundle, lambda values: values.update(format_version="10.0")),
        "format version 1",
    ),
    "medsam": (
        lambda bundle: edit(bundle, lambda values: values["profile"].update(name="medsam")),
        "another profile than samri or sam",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SPOILERS)
def test_a_bundle_that_it_cannot_use_is_refused_in_one_line(name: str, bundle: Path, tmp_path: Path) -> None:
    spoil, words = SPOILERS[name]
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    spoil(copy)
    result = run_host(copy, tmp_path, picture((60, 90)), [10, 10, 50, 40])
    assert result.returncode == 1
    assert words in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "mask.npy").exists()


def test_a_newer_minor_version_is_read(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    edit(copy, lambda values: values.update(format_version="1.7", something_new=[1]))
    assert run_host(copy, tmp_path, picture((60, 90)), [10, 10, 50, 40]).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("box", [[50, 10, 10, 40], [10, 10, 10, 40], [90, 10, 120, 40], [float("nan"), 1, 20, 20]])
def test_a_box_without_area_in_the_image_is_refused(box: list[float], bundle: Path, tmp_path: Path) -> None:
    result = run_host(bundle, tmp_path, picture((60, 90)), box)
    assert result.returncode == 1
    assert result.stderr == "the box is reversed, empty or outside the image\n"
