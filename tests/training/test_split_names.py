"""Folders for training, validation and testing, by the names that people give them: never pooled."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from segment_anything.modeling import Sam

from samri.errors import InputError
from samri_training.embed import find_sources
from samri_training.embedding_folders import folders_by_split, folders_of_split
from samri_training.prepare import prepare
from samri_training.prepare._sources import find_sources as find_pairs
from samri_training.slices import Split, split_named
from tests.support.stores import drawn_slices, write_store

NAMES: dict[str, Split | None] = {
    **dict.fromkeys(("training", "train", "Train", "TRAINING", "imagesTr", "labelsTr", "train_set"), "training"),
    **dict.fromkeys(("Embedding_train", "embeddings-training", "train_images", "img_train"), "training"),
    **dict.fromkeys(("val", "valid", "validation", "imagesVal", "Embedding_val", "valset"), "validation"),
    **dict.fromkeys(("test", "testing", "Test", "imagesTs", "labelsTs", "Embedding_test", "testset"), "testing"),
    **dict.fromkeys(("site_a", "trained", "value", "testis", "ts", "tr", "contest", "ultratest", "train1"), None),
}


def write_pair(folder: Path, case: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((16, 20, 1), np.uint8)
    mask[4:10, 5:12] = 1
    for role, voxels in (("img", mask.astype(np.int16) * 7), ("seg", mask)):
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / f"{case}_{role}_0.nii.gz")


@pytest.mark.parametrize(("name", "split"), NAMES.items())
def test_the_usual_names_are_known(name: str, split: Split | None) -> None:
    assert split_named(name) == split


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Train/images", "Valid/images", "Testing/images")])
def test_slices_in_folders_of_the_usual_names_become_stores_of_their_own(
    tmp_path: Path, names: tuple[str, str, str]
) -> None:
    data = tmp_path / "test"  # The folder that was named may be called anything.
    for name in names:
        write_pair(data / name, f"p{name[:2]}")
    sources = {source.split: [name for name, _ in source.slices] for source in find_sources(data)}
    assert list(sources) == ["training", "validation", "testing"]
    assert all(len(slices) == 1 for slices in sources.values())
    report = prepare(data, tmp_path / "out")
    assert {split: len(cases) for split, cases in report.cases.items()} == {
        "training": 1,
        "validation": 1,
        "testing": 1,
    }


def test_a_pattern_keeps_splits_apart_as_well(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write_pair(tmp_path / name, "a")
    pattern = ("{set}/{case}_img_0.nii.gz", "{set}/{case}_seg_0.nii.gz")
    found = find_pairs(tmp_path, pattern=pattern).pairs
    assert [(pair.case, pair.split) for pair in found] == [("test_a", "testing"), ("train_a", "training")]


def test_stores_and_caches_in_folders_of_the_usual_names_are_kept_apart(tmp_path: Path, small_sam: Sam) -> None:
    for name in ("Embedding_train", "val", "test"):
        write_store(tmp_path / name, small_sam, drawn_slices(2))
    assert {split: [part.name for part in parts] for split, parts in folders_by_split(tmp_path).items()} == {
        "training": ["Embedding_train"],
        "validation": ["val"],
        "testing": ["test"],
    }
    assert folders_of_split(tmp_path / "val", "training") == [tmp_path / "val"]
    write_store(tmp_path / "more", small_sam, drawn_slices(2))
    with pytest.raises(InputError, match="training or train"):
        folders_by_split(tmp_path)
