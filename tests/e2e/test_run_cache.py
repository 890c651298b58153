"""`samri-run` and its embedding cache: on by default, never a reason to fail."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from samri_runtime.run import main
from tests.support.scans import OBLIQUE, brain_like, save_nifti

OPTIONS = ("--axis", 2, "--box", 8, 6, 30, 33)
FROM_CACHE = "embedding from the cache"


@pytest.fixture
def model(bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(bundle, tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return save_nifti(tmp_path / "scan.nii.gz", brain_like((44, 52, 9)), sform=OBLIQUE)


def run(model: Path, source: Path, output: Path, *options: object) -> Result:
    own = [] if "--slice" in options else ["--slice", 5]
    arguments = ["--model", model, "--input", source, "--output", output, *OPTIONS, *own, *options]
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def provenance(output: Path) -> dict[str, dict[str, object]]:
    content: dict[str, dict[str, object]] = json.loads((output / "scan_seg_.json").read_text("utf-8"))
    return content


def test_the_second_run_needs_no_encoder_and_writes_the_same_mask(model: Path, scan: Path, tmp_path: Path) -> None:
    first = run(model, scan, tmp_path / "first")
    assert first.exit_code == 0, first.stderr
    assert FROM_CACHE not in first.stderr
    (model / "encoder.onnx").unlink()
    second = run(model, scan, tmp_path / "second")
    assert second.exit_code == 0, second.stderr
    assert FROM_CACHE in second.stderr
    for name in ("scan_seg_.nii.gz", "scan_seg_.png", "scan_overlay.png"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_the_provenance_says_what_ran_and_where_the_embedding_came_from(
    model: Path, scan: Path, tmp_path: Path
) -> None:
    for name in ("first", "second"):
        assert run(model, scan, tmp_path / name, "--provider", "cpu").exit_code == 0
    first, second = provenance(tmp_path / "first"), provenance(tmp_path / "second")
    assert first["provider"] == {"requested": "cpu", "ran": {"encoder": "cpu", "decoder": "cpu"}}
    assert second["provider"] == {"requested": "cpu", "ran": {"decoder": "cpu"}}
    assert (first["embedding"]["from_cache"], second["embedding"]["from_cache"]) == (False, True)
    assert first["embedding"]["made"] == second["embedding"]["made"]
    assert first["candidates"] == second["candidates"]


def test_another_slice_or_another_model_is_encoded(model: Path, scan: Path, tmp_path: Path) -> None:
    assert FROM_CACHE not in run(model, scan, tmp_path / "out").stderr
    other_slice = run(model, scan, tmp_path / "other", "--slice", 6)
    assert other_slice.exit_code == 0, other_slice.stderr
    assert FROM_CACHE not in other_slice.stderr
    assert FROM_CACHE in run(model, scan, tmp_path / "other", "--slice", 6).stderr
    manifest = json.loads((model / "manifest.json").read_text())
    (encoder,) = (graph for graph in manifest["graphs"] if graph["role"] == "encoder")
    encoder["embedding_id"] = encoder["embedding_id"][::-1]
    (model / "manifest.json").write_text(json.dumps(manifest))
    assert FROM_CACHE not in run(model, scan, tmp_path / "out").stderr


@pytest.mark.slow
def test_a_folder_can_be_named_and_the_cache_can_be_left_out(
    model: Path, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    default, named = tmp_path / "default", tmp_path / "named"
    monkeypatch.setenv("SAMRI_CACHE_DIR", str(default))
    for _ in range(2):
        done = run(model, scan, tmp_path / "out", "--no-cache")
        assert done.exit_code == 0, done.stderr
        assert FROM_CACHE not in done.stderr
    assert not default.exists()
    run(model, scan, tmp_path / "out", "--cache-dir", named, "--cache-dtype", "fp16", "--cache-size", "5MB")
    assert len(list((named / "embeddings").iterdir())) == 1
    assert not default.exists()
    assert FROM_CACHE in run(model, scan, tmp_path / "out", "--cache-dir", named, "--cache-dtype", "fp16").stderr
    assert FROM_CACHE not in run(model, scan, tmp_path / "out").stderr


def test_a_cache_too_small_for_one_embedding_is_said_in_one_line(model: Path, scan: Path, tmp_path: Path) -> None:
    done = run(model, scan, tmp_path / "out", "--cache-size", "1KB")
    assert done.exit_code == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "not kept" in line]


@pytest.mark.parametrize(
    "options",
    [
        ("--no-cache", "--cache-dir", "x"),
        ("--no-cache", "--cache-size", "1GB"),
        ("--no-cache", "--cache-dtype", "fp16"),
        ("--cache-size", "much"),
        ("--cache-size", "-1"),
        ("--cache-size", "9" * 400),
        ("--cache-dir", ""),
        ("--cache-dtype", "int8"),
    ],
)
def test_options_that_make_no_sense_are_wrong_usage(
    model: Path, scan: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    done = run(model, scan, tmp_path / "out", *options)
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_cache_that_cannot_be_used_fails_nothing(model: Path, scan: Path, tmp_path: Path) -> None:
    done = run(model, scan, tmp_path / "out", "--cache-dir", scan)
    assert done.exit_code == 0, done.stderr
    notes = [line for line in done.stderr.splitlines() if "cache" in line]
    assert 1 <= len(notes) <= 2
    assert (tmp_path / "out" / "scan_seg_.nii.gz").is_file()


def test_a_damaged_entry_is_told_and_computed_again(model: Path, scan: Path, tmp_path: Path) -> None:
    run(model, scan, tmp_path / "first", "--cache-dir", tmp_path / "cache")
    (entry,) = (tmp_path / "cache" / "embeddings").iterdir()
    entry.write_bytes(entry.read_bytes()[:1000])
    done = run(model, scan, tmp_path / "second", "--cache-dir", tmp_path / "cache")
    assert done.exit_code == 0, done.stderr
    assert "damaged" in done.stderr
    assert FROM_CACHE not in done.stderr
    mask = "scan_seg_.nii.gz"
    assert (tmp_path / "first" / mask).read_bytes() == (tmp_path / "second" / mask).read_bytes()


def test_verbose_tells_of_files_provider_cache_and_times(model: Path, scan: Path, tmp_path: Path) -> None:
    named = tmp_path / "cache"
    first = run(model, scan, tmp_path / "out", "--cache-dir", named, "--verbose").stderr
    assert f"samri-run: bundle {model} (" in first
    assert re.search(rf"samri-run: {re.escape(str(model))}/encoder\.onnx opened on cpu in \d+\.\d\d s", first)
    assert "samri-run: cache miss: " in first
    assert re.search(r"samri-run: encoded a slice of \d+ x \d+ in \d", first)
    assert re.search(r"samri-run: decoded 1 prompt\(s\) in \d", first)
    again = run(model, scan, tmp_path / "out", "--cache-dir", named, "-v").stderr
    assert f"samri-run: cache hit: {named}" in again
    assert "encoder.onnx" not in again
    assert run(model, scan, tmp_path / "out", "--cache-dir", named, "--quiet").stderr == ""
