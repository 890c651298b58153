"""Images and masks that were corrected under the same names, and the room that all parts of a run need."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner, Result

from sam_factory import SMALL, save_checkpoint, seeded_sam
from samri.errors import OutputError
from samri_training.embed import Share, embed, find_sources, main
from samri_training.store import EmbeddingStore, EncoderFacts


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("weights") / "small.pth", seeded_sam(SMALL))


def write_slices(folder: Path, count: int) -> Path:
    rng = np.random.default_rng(3)
    folder.mkdir(parents=True)
    for index in range(count):
        mask = np.zeros((40, 52, 1), np.uint8)
        mask[5 : 15 + index, 10:30] = 1 + index % 3
        for role, voxels in (("img", rng.integers(0, 2000, mask.shape).astype(np.int16)), ("seg", mask)):
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / f"case{index // 3}_{role}_{index:03d}.nii.gz")
    return folder


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="samri-embed")


def run(data: Path, folder: Path, *arguments: object) -> Result:
    """Embed three slices a shard."""
    options = ("--batch-size", 2, "--shard-size", 3, "--device", "cpu")
    return call("--data-dir", data, "--save-dir", folder, *options, *arguments)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def correct(file: Path) -> None:
    """As a person does who mends a label map: the same name, other voxels."""
    image = nib.load(file)
    voxels = np.asarray(image.dataobj).copy()
    voxels[6:9, 12:20] += 1
    nib.save(nib.Nifti1Image(voxels, image.affine), file)


@pytest.mark.parametrize("role", ["seg", "img"])
def test_corrected_slices_are_embedded_again_and_the_others_kept(tmp_path: Path, weights: Path, role: str) -> None:
    data, folder = write_slices(tmp_path / "data", 7), tmp_path / "store"
    run(data, folder, "--checkpoint", weights)
    before = content(folder)
    correct(data / f"case1_{role}_004.nii.gz")
    result = run(data, folder, "--checkpoint", weights, "--json")
    assert result.exit_code == 0, result.output
    assert "1 shard(s) hold slices whose image or mask has changed since: they are embedded again" in result.stderr
    assert (json.loads(result.stdout)["slices"], json.loads(result.stdout)["changed_shards"]) == (3, 1)
    run(data, tmp_path / "new", "--checkpoint", weights)
    after = content(folder)
    assert after == content(tmp_path / "new")
    assert {name for name in after if after[name] != before[name]} == {
        "index.json",
        "shard-000001.json",
        "shard-000001.safetensors",
    }
    mask = np.asarray(nib.load(data / "case1_seg_004.nii.gz").dataobj)[..., 0]
    np.testing.assert_array_equal(EmbeddingStore.open(folder)[4].mask, mask)
    assert "changed since" not in run(data, folder, "--checkpoint", weights).stderr


def test_a_shard_begun_before_a_correction_is_begun_anew(tmp_path: Path, weights: Path) -> None:
    data, folder = write_slices(tmp_path / "data", 3), tmp_path / "store"
    bad = data / "case0_seg_002.nii.gz"
    good = bad.read_bytes()
    bad.write_bytes(b"")
    assert run(data, folder, "--checkpoint", weights).exit_code == 1
    assert (folder / "shard-000000.part").exists()
    bad.write_bytes(good)
    correct(data / "case0_seg_000.nii.gz")
    run(data, folder, "--checkpoint", weights)
    run(data, tmp_path / "new", "--checkpoint", weights)
    assert content(folder) == content(tmp_path / "new")


def test_a_store_with_corrected_slices_in_another_part_is_not_called_finished(tmp_path: Path, weights: Path) -> None:
    data, folder = write_slices(tmp_path / "data", 6), tmp_path / "store"
    run(data, folder, "--checkpoint", weights)
    for index in (0, 5):
        correct(next(data.glob(f"*_seg_00{index}.nii.gz")))
    result = run(data, folder, "--checkpoint", weights, "--part", "0/2")
    assert "1 shard(s) still missing" in result.stderr
    assert not (folder / "index.json").exists()
    assert "still missing" not in run(data, folder, "--checkpoint", weights, "--part", "1/2").stderr
    run(data, tmp_path / "new", "--checkpoint", weights)
    assert content(folder) == content(tmp_path / "new")


def test_a_store_that_does_not_record_its_inputs_says_what_to_do(tmp_path: Path, weights: Path) -> None:
    data, folder = write_slices(tmp_path / "data", 3), tmp_path / "store"
    run(data, folder, "--checkpoint", weights)
    manifest = folder / "shard-000000.json"
    values = json.loads(manifest.read_text()) | {"format_version": "1.0", "inputs_sha256": None}
    manifest.write_text(json.dumps({key: value for key, value in values.items() if key != "checksum"}))
    correct(data / "case0_seg_000.nii.gz")
    result = run(data, folder, "--checkpoint", weights)
    assert re.search(r"1 shard\(s\) of an earlier samri don't record .* delete these shards", result.stderr)


def test_every_part_counts_the_room_that_all_of_them_need(tmp_path: Path) -> None:
    data = write_slices(tmp_path / "data", 4)
    free = shutil.disk_usage(tmp_path).free
    # A quarter of it has room, all of it has not.
    facts = EncoderFacts(
        "e" * 32, "samri", 128, (free // 2 // 4 * 2 // (64 * 64), 64, 64), "vit_x", "fp32", "x.pth", "0"
    )
    with pytest.raises(OutputError, match=r"the embeddings to come \(of all 4 parts together\) take"):
        embed(find_sources(data), tmp_path / "store", facts, None, share=Share(1, 4), slices_per_shard=1)


def test_a_model_that_comes_with_the_package_is_known_by_its_name(tmp_path: Path) -> None:
    data = write_slices(tmp_path / "data", 1)
    result = call("--data-dir", data, "--save-dir", tmp_path / "store", "--model", "samri-tiny", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "samri-tiny" in result.stderr
    assert len(EmbeddingStore.open(tmp_path / "store")) == 1
