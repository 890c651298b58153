from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from segment_anything.modeling import Sam

import samri_export
from samri.bundle import Bundle
from samri.errors import CheckpointError
from samri.hashing import file_sha256
from samri_export import _export, export_bundle
from samri_export.command import main
from tests.support.sams import save_checkpoint, with_other_decoder

pytestmark = pytest.mark.slow  # Whole runs: together they take longer than all other fast tests.


def export(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def failure(result: Result, code: int) -> str:
    """The last line of a failed run, which wrote nothing to stdout."""
    assert result.exit_code == code
    assert result.stdout == ""
    line = result.stderr.splitlines()[-1]
    assert "error: " in line.lower()
    return line


def test_the_public_names_are_these() -> None:
    assert set(samri_export.__all__) == {
        "CONTRACTS",
        "LEVELS",
        "OFFERED_PRECISIONS",
        "Contract",
        "Level",
        "export_bundle",
    }
    assert all(hasattr(samri_export, name) for name in samri_export.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = samri_export.nothing


def test_a_checkpoint_becomes_a_bundle(tmp_path: Path, checkpoint: Path) -> None:
    output = tmp_path / "new" / "bundle"
    result = export("--checkpoint", checkpoint, "--output", output, "--verify", "quick", "--contract", "sam")
    assert result.exit_code == 0
    assert result.stdout == f"{output}\n"
    assert "samri-export: profile samri (the default" in result.stderr
    assert "decoder_sam" in result.stderr
    assert all(line.startswith("samri-export: ") for line in result.stderr.splitlines())
    manifest = Bundle.open(output).manifest
    assert (manifest.name, manifest.backbone, manifest.profile.name) == ("small", "vit_64x4_p8_s128", "samri")
    assert (manifest.image_size, manifest.embedding_shape) == (128, (64, 16, 16))
    assert manifest.checkpoint == {"name": "small.pth", "sha256": file_sha256(checkpoint)}
    assert {"samri", "python", "torch", "segment-anything", "onnx", "onnxsim", "onnxruntime"} <= manifest.tools.keys()


def test_json_describes_the_bundle(tmp_path: Path, checkpoint: Path) -> None:
    result = export("-c", checkpoint, "-o", tmp_path / "out", "--verify", "off", "--json", "--name", "Knee MRI")
    described = json.loads(result.stdout)
    assert described["bundle"] == str(tmp_path / "out")
    assert described["manifest_sha256"] == file_sha256(tmp_path / "out" / "manifest.json")
    assert described["name"] == "Knee MRI"
    assert described["verification"]["level"] == "off"


def test_a_decoder_is_exported_with_its_base(tmp_path: Path, checkpoint: Path, small_sam: Sam) -> None:
    tuned = with_other_decoder(small_sam, seed=2)
    torch.save({"model": tuned.mask_decoder.state_dict()}, tmp_path / "decoder.pth")
    result = export("-c", tmp_path / "decoder.pth", "--base", checkpoint, "-o", tmp_path / "out", "--verify", "off")
    assert result.exit_code == 0
    recorded = Bundle.open(tmp_path / "out").manifest.checkpoint
    assert (recorded["name"], recorded["base_name"]) == ("decoder.pth", "small.pth")
    assert recorded["base_sha256"] == file_sha256(checkpoint)


@pytest.mark.parametrize("which", ["checkpoint", "base"])
def test_a_medsam_checkpoint_needs_a_profile(which: str, tmp_path: Path, checkpoint: Path, small_sam: Sam) -> None:
    named = tmp_path / "MedSAM_vit_b.pth"
    save_checkpoint(named, small_sam)
    torch.save(small_sam.mask_decoder.state_dict(), tmp_path / "tuned.pth")
    arguments = ["-c", named] if which == "checkpoint" else ["-c", tmp_path / "tuned.pth", "--base", named]
    assert "--profile medsam" in failure(export(*arguments, "-o", tmp_path / "out"), 2)
    with pytest.raises(CheckpointError, match="--profile medsam"):
        export_bundle(named, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    result = export(*arguments, "-o", tmp_path / "out", "--profile", "medsam", "--verify", "off")
    assert result.exit_code == 0
    assert Bundle.open(tmp_path / "out").manifest.profile.name == "medsam"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--profile", "ct"], "ct"),
        (["--precision", "int4"], "int4"),
        (["--contract", "onnx"], "onnx"),
        (["--verify", "half"], "half"),
        (["--profile", "medsam", "--contract", "sam"], "--contract"),
        (["--verify", "off", "--verify-image", "scan.nii"], "--verify-image"),
        (["--chekpoint", "x"], "chekpoint"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_is_wrong(
    arguments: list[str], words: str, tmp_path: Path, checkpoint: Path
) -> None:
    result = export("-c", checkpoint, "-o", tmp_path / "out", *arguments)
    assert words in failure(result, 2)
    assert list(tmp_path.iterdir()) == []


def test_unfitting_files_end_with_1_and_one_line(tmp_path: Path, checkpoint: Path, small_sam: Sam) -> None:
    missing = failure(export("-c", tmp_path / "no.pth", "-o", tmp_path / "out"), 1)
    assert missing.startswith(
        f"samri-export: error: {tmp_path / 'no.pth'}: no such checkpoint file; SAM's are at https"
    )
    (tmp_path / "cut.pth").write_bytes(checkpoint.read_bytes()[:5000])
    assert "cut.pth" in failure(export("-c", tmp_path / "cut.pth", "-o", tmp_path / "out"), 1)
    torch.save(small_sam.mask_decoder.state_dict(), tmp_path / "decoder.pth")
    assert "--base" in failure(export("-c", tmp_path / "decoder.pth", "-o", tmp_path / "out"), 1)
    assert "no bundle" in failure(export("-c", checkpoint, "-o", tmp_path / "out", "--encoder-from", "nowhere"), 1)
    assert not (tmp_path / "out").exists()


def test_what_is_there_stays_unless_it_is_to_be_replaced(tmp_path: Path, checkpoint: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    arguments = ("-c", checkpoint, "-o", output, "--verify", "off")
    assert "--overwrite" in failure(export(*arguments), 1)
    assert "is not a bundle" in failure(export(*arguments, "--overwrite"), 1)
    assert [path.name for path in output.iterdir()] == ["notes.txt"]
    (output / "notes.txt").unlink()
    assert export(*arguments).exit_code == 0
    (output / "run").mkdir()
    assert "also holds run, which samri-export didn't make" in failure(export(*arguments, "--overwrite"), 1)
    (output / "run").rmdir()
    assert export(*arguments, "--overwrite").exit_code == 0
    assert sorted(path.name for path in output.iterdir()) == [
        "decoder.onnx",
        "decoder_image.onnx",
        "decoder_prompts.onnx",
        "encoder.onnx",
        "manifest.json",
    ]


def test_the_output_is_looked_at_before_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    missing = tmp_path / "no.pth"
    assert "already exists" in failure(export("-c", missing, "-o", tmp_path / "full"), 1)
    assert "is a file" in failure(export("-c", missing, "-o", tmp_path / "file", "--overwrite"), 1)
    assert "cannot write" in failure(export("-c", missing, "-o", tmp_path / "file" / "out"), 1)
    assert "no.pth" in failure(export("-c", missing, "-o", tmp_path / "out"), 1)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_disk_without_room_for_the_graphs_gets_one_line(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    result = export("-c", checkpoint, "-o", tmp_path / "out")
    assert failure(result, 1) == f"samri-export: error: cannot write {tmp_path / 'out'}: No space left on device"
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_export_leaves_nothing(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_graph = _export.write_graph  # type: ignore[attr-defined]

    def interrupted(module: Any, spec: Any, path: Path, **settings: Any) -> Any:
        if spec.role == "decoder":
            raise KeyboardInterrupt
        return write_graph(module, spec, path, **settings)

    monkeypatch.setattr(_export, "write_graph", interrupted)
    result = export("-c", checkpoint, "-o", tmp_path / "out")
    assert result.exit_code == 130
    assert "writing the decoder" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_page_about_the_command_names_every_option() -> None:
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    options = {option for parameter in main.params for option in parameter.opts if option.startswith("--")}
    assert {option for option in options if f"`{option}" not in page} == {"--version"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to catch")
def test_a_process_that_is_told_to_stop_leaves_nothing(tmp_path: Path, checkpoint: Path) -> None:
    code = "from samri_export.command import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "-c", str(checkpoint), "-o", str(tmp_path / "out")],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stderr is not None
    while "writing the encoder" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert "Traceback" not in process.communicate(timeout=120)[1]
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []


def test_help_needs_no_torch_and_exporting_without_it_says_what_to_install(tmp_path: Path) -> None:
    blocked = "import sys; sys.modules['torch'] = None; from samri_export.command import main; main()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", blocked, *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    assert "--checkpoint" in run("--help").stdout
    result = run("-c", "sam.pth", "-o", str(tmp_path / "out"))
    assert result.returncode == 1
    assert result.stderr == (
        "samri-export: error: exporting needs torch, which isn't installed: pip install 'samri[cpu,export]'\n"
    )
