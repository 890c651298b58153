"""Images and masks that were corrected under the same names, and the room that all parts of a run need."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from samri.errors import OutputError
from samri_training.embed import WorkShare, embed, find_sources, main
from samri_training.store import EmbeddingStore, EncoderFacts
from tests.support.commands import call
from tests.support.files import contents
from tests.support.slices import embed_slices, write_slices

pytestmark = pytest.mark.slow  # Whole runs.


def correct(file: Path) -> None:
    """As a person does who mends a label map: the same name, other voxels."""
    image = nib.load(file)
    voxels = np.asarray(image.dataobj).copy()
    voxels[6:9, 12:20] += 1
    nib.save(nib.Nifti1Image(voxels, image.affine), file)


@pytest.mark.parametrize("role", ["seg", "img"])
def test_corrected_slices_are_embedded_again_and_the_others_kept(tmp_path: Path, checkpoint: Path, role: str) -> None:
    data, folder = write_slices(tmp_path / "data", 7), tmp_path / "store"
    embed_slices(data, folder, "--checkpoint", checkpoint)
    before = contents(folder)
    correct(data / f"case1_{role}_004.nii.gz")
    result = embed_slices(data, folder, "--checkpoint", checkpoint, "--json")
    assert result.exit_code == 0, result.output
    assert "1 shard(s) hold slices whose image or mask has changed since: they are embedded again" in result.stderr
    assert (json.loads(result.stdout)["slices"], json.loads(result.stdout)["changed_shards"]) == (3, 1)
    embed_slices(data, tmp_path / "new", "--checkpoint", checkpoint)
    after = contents(folder)
    assert after == contents(tmp_path / "new")
    assert {name for name in after if after[name] != before[name]} == {
        "index.json",
        "shard-000001.json",
        "shard-000001.safetensors",
    }
    mask = np.asarray(nib.load(data / "case1_seg_004.nii.gz").dataobj)[..., 0]
    np.testing.assert_array_equal(EmbeddingStore.open(folder)[4].mask, mask)
    assert "changed since" not in embed_slices(data, folder, "--checkpoint", checkpoint).stderr


def test_a_shard_begun_before_a_correction_is_begun_anew(tmp_path: Path, checkpoint: Path) -> None:
    data, folder = write_slices(tmp_path / "data", 3), tmp_path / "store"
    bad = data / "case0_seg_002.nii.gz"
    good = bad.read_bytes()
    bad.write_bytes(b"")
    assert embed_slices(data, folder, "--checkpoint", checkpoint).exit_code == 1
    assert (folder / "shard-000000.part").exists()
    bad.write_bytes(good)
    correct(data / "case0_seg_000.nii.gz")
    embed_slices(data, folder, "--checkpoint", checkpoint)
    embed_slices(data, tmp_path / "new", "--checkpoint", checkpoint)
    assert contents(folder) == contents(tmp_path / "new")


def test_a_store_with_corrected_slices_in_another_part_is_not_called_finished(tmp_path: Path, checkpoint: Path) -> None:
    data, folder = write_slices(tmp_path / "data", 6), tmp_path / "store"
    embed_slices(data, folder, "--checkpoint", checkpoint)
    for index in (0, 5):
        correct(next(data.glob(f"*_seg_00{index}.nii.gz")))
    result = embed_slices(data, folder, "--checkpoint", checkpoint, "--part", "0/2")
    assert "1 shard(s) still missing" in result.stderr
    assert not (folder / "index.json").exists()
    assert "still missing" not in embed_slices(data, folder, "--checkpoint", checkpoint, "--part", "1/2").stderr
    embed_slices(data, tmp_path / "new", "--checkpoint", checkpoint)
    assert contents(folder) == contents(tmp_path / "new")


def test_a_store_that_does_not_record_its_inputs_says_what_to_do(tmp_path: Path, checkpoint: Path) -> None:
    data, folder = write_slices(tmp_path / "data", 3), tmp_path / "store"
    embed_slices(data, folder, "--checkpoint", checkpoint)
    manifest = folder / "shard-000000.json"
    values = json.loads(manifest.read_text()) | {"format_version": "1.0", "inputs_sha256": None}
    manifest.write_text(json.dumps({key: value for key, value in values.items() if key != "checksum"}))
    correct(data / "case0_seg_000.nii.gz")
    result = embed_slices(data, folder, "--checkpoint", checkpoint)
    assert re.search(r"1 shard\(s\) of an earlier samri don't record .* delete these shards", result.stderr)


def test_every_part_counts_the_room_that_all_of_them_need(tmp_path: Path) -> None:
    data = write_slices(tmp_path / "data", 4)
    free = shutil.disk_usage(tmp_path).free
    # A quarter of it has room, all of it has not.
    facts = EncoderFacts(
        "e" * 32, "samri", 128, (free // 2 // 4 * 2 // (64 * 64), 64, 64), "vit_x", "fp32", "x.pth", "0"
    )
    with pytest.raises(OutputError, match=r"the embeddings to come \(of all 4 parts together\) take"):
        embed(find_sources(data), tmp_path / "store", facts, None, share=WorkShare(1, 4), slices_per_shard=1)


def test_a_model_that_comes_with_the_package_is_known_by_its_name(tmp_path: Path) -> None:
    data = write_slices(tmp_path / "data", 1)
    result = call(
        main, "--data-dir", data, "--save-dir", tmp_path / "store", "--model", "samri-tiny", "--device", "cpu"
    )
    assert result.exit_code == 0, result.output
    assert "samri-tiny" in result.stderr
    assert len(EmbeddingStore.open(tmp_path / "store")) == 1
