"""What datasets say of their labels, structures in files of their own, and formats that aren't read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner

from samri.errors import InputError
from samri_training.embed import find_sources as find_slices_to_embed
from samri_training.prepare import main, prepare
from samri_training.prepare._labels import read_bids_table, read_dataset_json
from samri_training.prepare._sources import find_sources
from samri_training.slices import find_slices

ALL = (1.0, 0.0, 0.0)


def save(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)


def labels(*values: int) -> np.ndarray:
    """Each label in rows of its own."""
    mask = np.zeros((4 * len(values), 12, 3), np.uint8)
    for place, value in enumerate(values):
        mask[4 * place : 4 * place + 3, 2:9] = value
    return mask


def nnunet(folder: Path, description: Any, *values: int) -> Path:
    mask = labels(*values)
    save(folder / "imagesTr" / "a_0000.nii.gz", mask.astype(np.int16))
    save(folder / "imagesTr" / "a_0001.nii.gz", mask.astype(np.int16))
    save(folder / "labelsTr" / "a.nii.gz", mask)
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


SECOND = {
    "channel_names": {"0": "T1", "1": "T2"},
    "labels": {"background": 0, "liver": 1, "whole tumor": [2, 3], "core": 3, "ignore": 4},
    "file_ending": ".nii.gz",
}


def test_dataset_json_names_labels_and_ignore_is_no_structure(tmp_path: Path) -> None:
    report = prepare(nnunet(tmp_path / "in", SECOND, 1, 2, 3, 4), tmp_path / "out", shares=ALL)
    assert sorted(report.labels()) == [1, 2, 3]
    assert report.names == {1: "liver", 3: "core"}
    assert "1 liver" in report.to_text()
    assert json.loads((tmp_path / "out" / "report.json").read_text())["label_names"] == {"1": "liver", "3": "core"}
    assert json.loads((tmp_path / "out" / "training" / "slices.json").read_text())["labels"]["3"] == "core"
    assert {int(value) for pair in find_slices(tmp_path / "out") for value in np.unique(pair.read().mask)} == {
        *(0, 1, 2, 3)
    }
    assert any("label 4 (ignore) counts as background" in note for note in report.notes)
    assert any("the region whole tumor is labels 2, 3" in note for note in report.notes)
    assert "another channel (T2)" in report.left_out[0].why


def test_the_first_version_and_the_decathlon_name_labels_the_other_way_round(tmp_path: Path) -> None:
    description = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "Anterior", "2": "Posterior"}}
    report = prepare(nnunet(tmp_path / "in", description, 1, 2), tmp_path / "out", shares=ALL)
    assert report.names == {1: "Anterior", 2: "Posterior"}


def test_labels_that_are_not_declared_are_refused_with_their_values(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "in", SECOND, 1, 7, 9)
    with pytest.raises(
        InputError, match=r"a\.nii\.gz holds 7, 9, which dataset\.json doesn't declare \(only 0, 1, 2, 3\)"
    ):
        prepare(source, tmp_path / "out", shares=ALL)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not JSON"),
        ("[]", "has no labels"),
        ('{"labels": {}}', "has no labels"),
        ('{"labels": {"liver": "one"}}', "labels are invalid"),
        ('{"labels": {"liver": -1}}', "labels are invalid"),
        ('{"labels": {"liver": 1e9}}', "labels are invalid"),
        ('{"labels": {"liver": true}}', "labels are invalid"),
        ('{"labels": {"liver": []}}', "labels are invalid"),
        ('{"labels": {"1": 2}}', "labels are invalid"),
        ('{"labels": {"liver": 1, "spleen": 1}}', "names label 1 liver and spleen"),
    ],
)
def test_a_dataset_json_of_nonsense_is_one_line(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(InputError, match=words):
        read_dataset_json(tmp_path / "dataset.json")


def bids(folder: Path, subject: str, *values: int) -> Path:
    save(folder / subject / "anat" / f"{subject}_T2w.nii.gz", labels(*values).astype(np.int16))
    derived = folder / "derivatives" / "manual" / subject / "anat"
    save(derived / f"{subject}_desc-manual_dseg.nii.gz", labels(*values))
    return derived / f"{subject}_desc-manual_dseg.tsv"


def test_bids_tables_name_labels_where_they_lie(tmp_path: Path) -> None:
    own = bids(tmp_path / "in", "sub-01", 1, 2)
    bids(tmp_path / "in", "sub-02", 1, 3)
    own.write_text("index\tname\tcolor\n0\tBackground\t#000000\n1\tWhite Matter\t#ff0000\n2\tlesion\t#00ff00\n")
    shared = tmp_path / "in" / "derivatives" / "manual" / "desc-manual_dseg.tsv"
    shared.write_text("index\tname\n1\tWhite Matter\n3\tventricle\n")
    (shared.parent / "desc-other_dseg.tsv").write_text("index\tname\n1\twrong\n")
    report = prepare(tmp_path / "in", tmp_path / "out", shares=ALL)
    assert report.names == {1: "White Matter", 2: "lesion", 3: "ventricle"}
    shared.write_text("index\tname\n1\tGray Matter\n3\tventricle\n")
    with pytest.raises(InputError, match="calls label 1"):
        prepare(tmp_path / "in", tmp_path / "again", shares=ALL)


@pytest.mark.parametrize(
    "text", ["", "index,name\n1,a\n", "index\tname\nx\ta\n", "index\tname\n1\n", "index\tname\n1\ta\n1\tb"]
)
def test_a_bids_table_of_nonsense_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "dseg.tsv").write_text(text)
    if text:
        with pytest.raises(InputError, match=r"dseg\.tsv"):
            read_bids_table(tmp_path / "dseg.tsv")
    else:
        assert read_bids_table(tmp_path / "dseg.tsv").names == ()


def structures(folder: Path, case: str, **names: int) -> None:
    """TotalSegmentator's MRI set; each structure takes the rows given by its number."""
    save(folder / case / "mri.nii.gz", np.arange(24 * 12 * 3, dtype=np.int16).reshape(24, 12, 3))
    for name, place in names.items():
        mask = np.zeros((24, 12, 3), np.uint8)
        mask[4 * place : 4 * place + 3, 2:9] = 1
        save(folder / case / "segmentations" / f"{name}.nii.gz", mask)


def test_structures_in_files_of_their_own_become_one_label_map(tmp_path: Path) -> None:
    structures(tmp_path / "in", "s001", spleen=1, liver=0)
    structures(tmp_path / "in", "s002", spleen=2, heart=3)
    report = prepare(tmp_path / "in", tmp_path / "out", shares=ALL)
    assert report.settings["layout"] == "structures"
    assert report.names == {1: "heart", 2: "liver", 3: "spleen"}
    found = {(pair.case, *np.unique(pair.read().mask)) for pair in find_slices(tmp_path / "out")}
    assert found == {("s001", 0, 2, 3), ("s002", 0, 1, 3)}
    chosen = prepare(tmp_path / "in", tmp_path / "livers", masks="*/liver.nii.gz", shares=ALL)
    assert chosen.names == {1: "liver"}


def test_where_structures_overlap_the_later_name_is_kept_and_said(tmp_path: Path) -> None:
    structures(tmp_path / "in", "s001", liver=0, vessel=0)
    report = prepare(tmp_path / "in", tmp_path / "out", shares=ALL)
    assert sorted(report.labels()) == [2]
    assert any("vessel.nii.gz: overlaps liver; such voxels count as vessel" in note for note in report.notes)


def test_a_structure_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    structures(tmp_path / "in", "s001", liver=0)
    save(tmp_path / "in" / "s001" / "segmentations" / "two.nii.gz", labels(1, 2, 1, 2, 1, 2))
    with pytest.raises(InputError, match=r"two\.nii\.gz holds several labels"):
        prepare(tmp_path / "in", tmp_path / "out", shares=ALL)
    save(tmp_path / "in" / "s001" / "ct.nii.gz", labels(1))
    with pytest.raises(InputError, match=r"s001 has several images.*--images"):
        find_sources(tmp_path / "in")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("a.nrrd", "a.seg.nrrd"), r"NRRD \(\.nrrd\), which SAMRI doesn't read.*SimpleITK"),
        (("p_img_0.mha", "p_seg_0.mha"), r"MetaImage \(\.mha\), which SAMRI doesn't read.*SimpleITK"),
        (("p_img_0.nii.gz", "p_seg_0.nrrd"), r"p_seg_0\.nrrd is NRRD"),
        (("1.dcm",), r"DICOM \(\.dcm\).*dcm2niix"),
    ],
)
def test_a_format_that_is_not_read_is_told_as_such(tmp_path: Path, names: tuple[str, ...], words: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=words):
        find_sources(tmp_path)
    if len(names) != 2 or "nii" not in names[0]:
        with pytest.raises(InputError, match=words):
            find_slices_to_embed(tmp_path)


def test_nnunet_images_of_another_format_are_told_as_such(tmp_path: Path) -> None:
    source = nnunet(tmp_path, SECOND | {"file_ending": ".nrrd"}, 1)
    with pytest.raises(InputError, match=r"dataset\.json says that the images are NRRD"):
        find_sources(source)


def test_freesurfer_files_are_paired_as_nifti_is(tmp_path: Path) -> None:
    for name in ("p_img_0.mgz", "p_seg_0.mgz"):
        (tmp_path / name).touch()
    assert [pair.case for pair in find_sources(tmp_path).pairs] == ["p"]


def test_the_command_says_names(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "in", SECOND, 1)
    result = CliRunner().invoke(main, ["-i", str(source), "-o", str(tmp_path / "out"), "--split", "1", "0", "0"])
    assert result.exit_code == 0, result.output
    assert "1 liver" in result.stdout
