"""Names of objects: the table beside the mask and the mask's own header, as other programs read them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner, Result

from samri.io import PALETTE, read_scan, write_mask
from samri_runtime.run import main
from samri_training.prepare._labels import bids_table_of, read_bids_table
from tests.support.scans import OBLIQUE, brain_like, save_nifti

NAMES = ('left "hip" <1> & more', "Hüfte rechts")
BOXES = ("--box", 5, 5, 20, 22, "--box", 12, 10, 28, 30)
LABELS = ("--label", NAMES[0], "--label", NAMES[1])


def run(bundle: Path, source: Path, output: Path, *options: object) -> Result:
    given = ["-c", bundle, "-i", source, "-o", output, *BOXES, "--slice", 3, "--provider", "cpu", *options]
    return CliRunner().invoke(main, [str(word) for word in given])


def read_names(mask: Path) -> dict[int, tuple[str, tuple[int, ...]]]:
    """Name and color by label, read as Workbench reads them: XML in the extension of code 30."""
    (extension,) = nib.load(mask).header.extensions
    assert extension.get_code() == 30
    root = ElementTree.fromstring(extension.content.decode())
    (volume,) = root.findall("VolumeInformation")
    assert volume.get("Index") == "0"
    assert volume.findtext("VolumeType") == "Label"
    return {
        int(label.attrib["Key"]): (
            label.text or "",
            tuple(round(255 * float(label.attrib[part])) for part in ("Red", "Green", "Blue")),
        )
        for label in volume.iterfind("LabelTable/Label")
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return save_nifti(tmp_path / "in" / "scan.nii.gz", brain_like((30, 34, 6)), sform=OBLIQUE)


def test_names_lie_in_a_table_and_in_the_masks_header(bundle: Path, source: Path, tmp_path: Path) -> None:
    result = run(bundle, source, tmp_path / "out", *LABELS)
    assert result.exit_code == 0, result.stderr
    table = tmp_path / "out" / "scan_seg_dseg.tsv"
    assert str(table) in result.stdout.splitlines()
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    colors = [f"#{bytes(color).hex()}" for color in PALETTE]
    expected = [{"index": str(n + 1), "name": NAMES[n], "color": colors[n]} for n in range(2)]
    assert rows == expected
    mask = tmp_path / "out" / "scan_seg_.nii.gz"
    assert read_names(mask) == {1: (NAMES[0], PALETTE[0]), 2: (NAMES[1], PALETTE[1])}
    assert "scan_seg_dseg.tsv" in json.loads((tmp_path / "out" / "scan_seg_.json").read_text("utf-8"))["files"]


def test_voxels_and_geometry_are_those_of_a_mask_without_names(bundle: Path, source: Path, tmp_path: Path) -> None:
    assert run(bundle, source, tmp_path / "named", *LABELS).exit_code == 0
    assert run(bundle, source, tmp_path / "plain").exit_code == 0
    named, plain = (nib.load(tmp_path / name / "scan_seg_.nii.gz") for name in ("named", "plain"))
    np.testing.assert_array_equal(np.asarray(named.dataobj), np.asarray(plain.dataobj))
    headers = [{**image.header, "vox_offset": 0} for image in (named, plain)]
    assert all(
        np.asarray(headers[0][field]).tobytes() == np.asarray(headers[1][field]).tobytes() for field in headers[0]
    )
    assert not plain.header.extensions
    assert not (tmp_path / "plain" / "scan_seg_dseg.tsv").exists()
    np.testing.assert_array_equal(
        read_scan(tmp_path / "named" / "scan_seg_.nii.gz").voxels, np.asarray(plain.dataobj), strict=True
    )


@pytest.mark.parametrize("kind", ["<f4 nii", ">i2 nii.gz", "<i2 nii2"])
@pytest.mark.parametrize("length", range(1, 18))
def test_names_of_any_length_fit_every_header(tmp_path: Path, kind: str, length: int) -> None:
    dtype, suffix = kind.split()
    header_class = nib.Nifti2Header if suffix == "nii2" else nib.Nifti1Header
    image_class = nib.Nifti2Image if suffix == "nii2" else nib.Nifti1Image
    path = tmp_path / f"scan.{suffix.removesuffix('2')}"
    voxels = np.arange(24, dtype=dtype).reshape(2, 3, 4)
    nib.save(image_class(voxels, OBLIQUE, header_class(endianness=dtype[0])), path)
    scan = read_scan(path)
    labels = (voxels % 3).astype(np.uint8)
    write_mask(tmp_path / "mask.nii", labels, scan, {1: "x" * length, 2: "y"})
    assert {label: name for label, (name, _) in read_names(tmp_path / "mask.nii").items()} == {1: "x" * length, 2: "y"}
    written = nib.load(tmp_path / "mask.nii")
    assert type(written) is image_class
    assert written.header.endianness == dtype[0]
    assert int(written.header["vox_offset"]) % 16 == 0
    np.testing.assert_array_equal(np.asarray(written.dataobj), labels)


def test_the_table_is_found_for_the_mask_and_its_candidates(bundle: Path, source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    for options, masks in (((), ["scan_seg_.nii.gz"]), (("--multimask",), [f"scan_seg_{n}.nii.gz" for n in (1, 2, 3)])):
        assert run(bundle, source, output, *LABELS, *options).exit_code == 0
        for mask in masks:
            table = bids_table_of(output / mask, output)
            assert table is not None
            assert dict(read_bids_table(table).names) == {1: NAMES[0], 2: NAMES[1]}
            assert len(read_names(output / mask)) == 2


def test_a_persons_table_is_replaced_only_when_asked(bundle: Path, source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    table = output / "scan_seg_dseg.tsv"
    table.write_text("mine")
    refused = run(bundle, source, output, *LABELS)
    assert refused.exit_code == 1
    assert "scan_seg_dseg.tsv already exists" in refused.stderr
    assert [path.name for path in output.iterdir()] == [table.name]
    assert run(bundle, source, output).exit_code == 0  # Without names, no table is written.
    assert table.read_text() == "mine"
    replaced = run(bundle, source, output, *LABELS, "--overwrite")
    assert replaced.exit_code == 0
    assert "as --overwrite says: scan_seg_dseg.tsv" in replaced.stderr


def test_a_table_of_an_earlier_run_goes_with_its_results(bundle: Path, source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert run(bundle, source, output, *LABELS).exit_code == 0
    assert run(bundle, source, output).exit_code == 0
    assert not (output / "scan_seg_dseg.tsv").exists()


def test_a_folder_in_the_tables_place_is_told_before_the_work(bundle: Path, source: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "scan_seg_dseg.tsv").mkdir(parents=True)
    result = run(bundle, source, tmp_path / "out", *LABELS)
    assert result.exit_code == 1
    assert "it is a folder" in result.stderr
