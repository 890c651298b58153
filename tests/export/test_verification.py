from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from segment_anything.modeling import Sam

from samri.errors import InputError, VerificationError
from samri.manifest import Role
from samri.model import load_checkpoint
from samri.preprocessing import ProfileName, profile
from samri_export import OFFERED_PRECISIONS, _export, export_bundle
from samri_export._reference import DecoderOutput
from samri_export._report import THRESHOLDS, TOLERANCES, compare
from samri_export._verification import verify
from samri_export._verification_cases import built_in_slices, prompt_cases
from tests.support.sams import save_checkpoint, seeded_sam

pytestmark = pytest.mark.slow  # Whole runs: together they take longer than all other fast tests.


def scaled_weight(path: Path, name_part: str, factor: float) -> None:
    """Damage an ONNX file in place: the largest initializer with that in its name is scaled."""
    model = onnx.load(path)
    fitting = [tensor for tensor in model.graph.initializer if name_part in tensor.name]
    damaged = max(fitting, key=lambda tensor: len(tensor.raw_data))
    damaged.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(damaged) * np.float32(factor), damaged.name))
    onnx.save(model, path)


@pytest.mark.slow
def test_the_report_of_a_right_export_is_in_its_manifest(tmp_path: Path, checkpoint: Path) -> None:
    export_bundle(checkpoint, tmp_path / "out", contracts=("sam", "sam-multi"))
    report = json.loads((tmp_path / "out" / "manifest.json").read_text())["verification"]
    assert report["level"] == "full"
    assert [picture["picture"] for picture in report["pictures"]] == ["portrait", "landscape", "larger than S"]
    shapes = [picture["shape"] for picture in report["pictures"]]
    assert shapes[0][0] > shapes[0][1] and shapes[1][0] < shapes[1][1] and min(shapes[2]) > 128
    prompts = [case for case in report["cases"] if case["graph"] == "decoder"]
    assert sum(case["prompts"] for case in prompts) == 30
    graphs = {"decoder", "decoder_prompts", "decoder_sam", "decoder_sam_multi"}
    assert {case["graph"] for case in report["cases"]} == graphs
    assert report["largest_embedding_difference"] < 1e-5
    assert report["largest_logit_difference"] < 1e-4
    assert report["smallest_dice"] > 0.999
    assert all(picture["model_input"] == 0 for picture in report["pictures"])


def test_every_precision_that_is_offered_has_its_tolerance() -> None:
    # The float32 graphs are held against the model, and the others against the float32 ones.
    assert {*TOLERANCES, *THRESHOLDS} == set(OFFERED_PRECISIONS)
    assert not set(TOLERANCES) & set(THRESHOLDS)


def test_the_pictures_and_prompts_cover_what_they_are_meant_to() -> None:
    pictures = built_in_slices(1024)
    assert {picture.pixels.dtype for picture in pictures} == {np.dtype(t) for t in ("uint8", "uint16", "float32")}
    for picture in pictures:
        cases = prompt_cases(picture.shape)
        assert len({len(p.points) + 2 * (p.box is not None) for p in cases[5].prompts}) > 1
        for case in cases:
            for prompt in case.prompts:
                assert prompt.validate(picture.shape)[1] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sam", "medsam"])
def test_other_profiles_are_verified_too(name: ProfileName, tmp_path: Path, checkpoint: Path) -> None:
    bundle = export_bundle(checkpoint, tmp_path / "out", profile=name)
    report = bundle.manifest.verification
    assert bundle.manifest.profile == profile(name)
    assert report["smallest_dice"] > 0.999
    assert len(report["pictures"]) == 3


def test_quick_takes_the_portrait_alone(contract_bundle: Any) -> None:
    report = contract_bundle.manifest.verification
    assert [picture["picture"] for picture in report["pictures"]] == ["portrait"]
    assert sum(case["prompts"] for case in report["cases"] if case["graph"] == "decoder") == 10
    assert sum(case["prompts"] for case in report["cases"] if case["graph"] == "decoder_sam") == 5
    assert report["smallest_dice"] > 0.999
    assert report["largest_logit_difference"] < 1e-4


def test_off_says_so(tmp_path: Path, checkpoint: Path) -> None:
    lines: list[str] = []
    bundle = export_bundle(checkpoint, tmp_path / "out", verify="off", progress=lines.append)
    assert bundle.manifest.verification["level"] == "off"
    assert "not verified (--verify off)" in lines


@pytest.mark.parametrize(
    ("role", "damaged_name", "message"),
    [
        ("encoder", "mlp", r"portrait, fp32 encoder: embedding differs by .* of its range"),
        ("decoder", "mlp", r"portrait, fp32 decoder, .*: logits differ by .* of their range"),
        pytest.param("decoder_sam", "mlp", r"portrait, fp32 decoder_sam, .*: logits differ", marks=pytest.mark.slow),
        pytest.param(
            "decoder_sam_multi", "mlp", r"portrait, fp32 decoder_sam_multi, .*: logits differ", marks=pytest.mark.slow
        ),
    ],
)
def test_a_damaged_graph_is_found_and_named(
    role: Role, damaged_name: str, message: str, tmp_path: Path, checkpoint: Path, contract_bundle: Any
) -> None:
    graphs = {graph.role: contract_bundle.graph_path(graph.role) for graph in contract_bundle.manifest.graphs}
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(graphs[role].read_bytes())
    scaled_weight(damaged, damaged_name, 1.1)
    with pytest.raises(VerificationError, match=message):
        verify(
            load_checkpoint(checkpoint),
            profile("sam"),
            {"fp32": {"encoder": graphs["encoder"], "decoder": graphs["decoder"], role: damaged}},
            level="quick",
            progress=lambda line: None,
        )


@pytest.mark.slow
def test_a_graph_of_another_decoder_is_found(tmp_path: Path, checkpoint: Path, contract_bundle: Any) -> None:
    other = export_bundle(save_checkpoint(tmp_path / "o.pth", seeded_sam(seed=8)), tmp_path / "other", verify="off")
    graphs = {"encoder": contract_bundle.graph_path("encoder"), "decoder": other.graph_path("decoder")}
    with pytest.raises(VerificationError, match=rf"results of {checkpoint}: .* \(and \d+ more\); nothing was written"):
        verify(load_checkpoint(checkpoint), profile("sam"), {"fp32": graphs}, level="quick", progress=lambda line: None)


def test_a_failed_verification_leaves_nothing(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_graph: Callable[..., Any] = _export.write_graph  # type: ignore[attr-defined]

    def write_damaged(module: Any, spec: Any, path: Path, **settings: Any) -> Any:
        written = write_graph(module, spec, path, **settings)
        if path.name == "decoder.onnx":
            scaled_weight(path, "mlp", 1.5)
        return written

    monkeypatch.setattr(_export, "write_graph", write_damaged)
    with pytest.raises(VerificationError):
        export_bundle(checkpoint, tmp_path / "out", verify="quick")
    assert list(tmp_path.iterdir()) == []


def test_empty_and_full_masks_are_judged_by_their_logits(tmp_path: Path) -> None:
    sam = with_empty_and_full_masks(seeded_sam())
    lines: list[str] = []
    path = save_checkpoint(tmp_path / "empty.pth", sam)
    report = export_bundle(path, tmp_path / "out", verify="quick", progress=lines.append).manifest.verification
    assert report["masks_without_dice"] >= 20
    # 40 of `decoder`, and of `decoder_prompts` those of the prompts without a mask.
    assert report["masks"] == 76
    coverage = np.array([case["coverage"] for case in report["cases"]])
    assert coverage[:, 0].max() == 0 and coverage[:, 1].min() == 1
    assert any("judged by their logits, not by Dice" in line for line in lines)


def test_masks_that_are_all_empty_have_no_dice() -> None:
    empty = DecoderOutput(
        low_res=-1 - np.random.default_rng(0).random((1, 4, 8, 8), dtype=np.float32),
        scores=np.zeros((1, 4), dtype=np.float32),
        at_size=-1 - np.random.default_rng(1).random((1, 4, 20, 30), dtype=np.float32),
    )
    result = compare(empty, empty, picture="p", case="c", graph="decoder", precision="fp32")
    assert result.dice is None
    assert result.masks_without_dice == 4


def test_not_a_number_is_beyond_every_tolerance(contract_bundle: Any, checkpoint: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(contract_bundle.graph_path("decoder").read_bytes())
    scaled_weight(damaged, "mlp", float("nan"))
    graphs = {"encoder": contract_bundle.graph_path("encoder"), "decoder": damaged}
    with pytest.raises(VerificationError, match="logits differ by nan"):
        verify(load_checkpoint(checkpoint), profile("sam"), {"fp32": graphs}, level="quick", progress=lambda line: None)


@pytest.mark.slow
def test_the_users_own_scan_is_compared_without_its_name_in_the_manifest(tmp_path: Path, checkpoint: Path) -> None:
    voxels = np.random.default_rng(0).gamma(2, 100, (40, 30, 9)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "Jane Doe.nii.gz")
    bundle = export_bundle(
        checkpoint,
        tmp_path / "out",
        profile="medsam",
        verify="quick",
        verify_images=[tmp_path / "Jane Doe.nii.gz"],
    )
    pictures = bundle.manifest.verification["pictures"]
    assert [picture["picture"] for picture in pictures] == ["portrait", "own image 1"]
    assert pictures[1]["shape"] == [40, 30]
    assert "Jane" not in (tmp_path / "out" / "manifest.json").read_text()


def test_a_scan_that_cannot_be_read_stops_the_export(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "scan.nii").write_text("not a scan")
    with pytest.raises(InputError, match=r"scan\.nii"):
        export_bundle(checkpoint, tmp_path / "out", verify_images=[tmp_path / "scan.nii"])
    assert not (tmp_path / "out").exists()


def with_empty_and_full_masks(sam: Sam) -> Sam:
    """Mask 0 and 1 far below zero everywhere, 2 and 3 far above."""
    with torch.no_grad():
        features = sam.mask_decoder.output_upscaling[3]
        features.weight.mul_(0.05)
        features.bias.fill_(2.0)
        for mask, mlp in enumerate(sam.mask_decoder.output_hypernetworks_mlps):
            mlp.layers[-1].weight.mul_(0.01)
            mlp.layers[-1].bias.fill_(-3.0 if mask < 2 else 3.0)
    return sam
