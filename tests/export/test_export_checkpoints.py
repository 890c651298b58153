"""Checkpoints of other makes, on the whole way through samri-export."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from segment_anything.modeling import Sam

from samri.bundle import Bundle
from samri.errors import BundleError
from samri_export import _bindings, export_bundle
from samri_export.command import main


def export(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return result.exit_code, result.stderr


@pytest.fixture(scope="module")
def others_names(small_sam: Sam) -> dict[str, torch.Tensor]:
    """A few of Hugging Face's names, under a prefix, with a loss's buffer and numpy's numbers beside them."""
    state = small_sam.state_dict()
    for ours, theirs in {
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": "shared_image_embedding.positional_embedding",
        "mask_decoder.output_upscaling.0.weight": "mask_decoder.upscale_conv1.weight",
    }.items():
        state[theirs] = state.pop(ours)
    prefixed = {f"model.{name}": weight for name, weight in state.items()}
    return prefixed | {"criterion.weight": torch.ones(1)}


@pytest.mark.slow
def test_a_bundle_of_renamed_weights_is_the_same_to_the_byte(
    others_names: dict[str, torch.Tensor], bundle: Path, tmp_path: Path
) -> None:
    torch.save({"state_dict": others_names, "loss": np.float64(0.1)}, tmp_path / "pytorch_model.bin")
    code, lines = export("-c", tmp_path / "pytorch_model.bin", "-o", tmp_path / "out", "--verify", "off")
    assert code == 0
    assert "samri-export: note: pytorch_model.bin has Hugging Face's names" in lines
    assert "samri-export: note: pytorch_model.bin holds more than SAM, which was left out: criterion.weight" in lines
    for graph in Bundle.open(bundle).manifest.graphs:
        assert (tmp_path / "out" / graph.file.path).read_bytes() == (bundle / graph.file.path).read_bytes()
    assert Bundle.open(tmp_path / "out").manifest.embedding_id() == Bundle.open(bundle).manifest.embedding_id()


def test_a_flipped_bit_leaves_no_bundle(checkpoint: Path, tmp_path: Path) -> None:
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "flipped.pth").write_bytes(content)
    code, lines = export("-c", tmp_path / "flipped.pth", "-o", tmp_path / "out")
    assert code == 1
    assert "flipped.pth: damaged" in lines.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["flipped.pth"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes of this kind")
@pytest.mark.parametrize("option", ["--checkpoint", "--base"])
def test_a_named_pipe_is_refused_at_once(option: str, small_sam: Sam, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    torch.save(small_sam.mask_decoder.state_dict(), tmp_path / "decoder.pth")
    given = {"--checkpoint": tmp_path / "decoder.pth", option: tmp_path / "pipe.pth"}
    arguments = [text for name, path in given.items() for text in (name, path)]
    code, lines = export(*arguments, "-o", tmp_path / "out")
    assert code == 1
    assert "pipe.pth is a named pipe: give a regular file" in lines


def test_an_own_image_that_cannot_be_read_is_told_before_the_export(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "scan.nii.gz").write_bytes(b"no scan")
    code, lines = export("-c", checkpoint, "-o", tmp_path / "out", "--verify-image", tmp_path / "scan.nii.gz")
    assert code == 1
    assert "scan.nii.gz" in lines and "writing the encoder" not in lines


def test_an_encoder_that_webgpu_cannot_hold_is_not_taken_over(
    checkpoint: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_bindings, "MOST_TENSORS", 4)
    with pytest.raises(BundleError, match=r"its encoder was made by an older version \(.*\): leave out --encoder-from"):
        export_bundle(checkpoint, tmp_path / "out", encoder_from=bundle, verify="off")
    assert not (tmp_path / "out").exists()
