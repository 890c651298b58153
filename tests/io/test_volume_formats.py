"""Volumes that other tools write, and what of their headers is put right: with nibabel as the oracle."""

from __future__ import annotations

import gzip
import os
import struct
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Extension

from samri.errors import InputError
from samri.io import MissingFrameError, read_scan, scan_name, write_mask
from tests.support.scans import FLIPPED, OBLIQUE, OBLIQUE_FLIPPED, affine, save_nifti

VOXELS = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)


def patched(path: Path, **fields: object) -> Path:
    """The NIfTI-1 at `path` with header fields that nibabel wouldn't write, its voxels where they were."""
    raw = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
    header = np.frombuffer(raw[:348], nib.Nifti1Header.template_dtype).copy()
    for name, value in fields.items():
        header[name] = value
    changed = header.tobytes() + raw[348:]
    path.write_bytes(gzip.compress(changed) if path.name.endswith(".gz") else changed)
    return path


def mgh_affine(path: Path) -> np.ndarray:
    """As nibabel computes it; its image would leave the file open."""
    with (gzip.open if path.suffix == ".mgz" else open)(path, "rb") as file:
        return nib.freesurfer.mghformat.MGHHeader.from_fileobj(file).get_affine()


def mask_of(scan_path: Path) -> nib.Nifti1Image:
    scan = read_scan(scan_path)
    out = scan_path.parent / "mask.nii.gz"
    write_mask(out, np.ones(scan.grid, bool), scan)
    return nib.load(out)


@pytest.mark.parametrize("suffix", [".mgz", ".mgh"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
@pytest.mark.parametrize("place", [OBLIQUE, OBLIQUE_FLIPPED, affine((0.3, 0, 1), (0.5, 2, 1), (1, 1, -1), (9, 8, 7))])
def test_a_freesurfer_volume_is_read_as_nibabel_reads_it(tmp_path, suffix, dtype, place):
    path = tmp_path / f"scan{suffix}"
    nib.save(nib.MGHImage(VOXELS.astype(dtype), place), path)
    scan = read_scan(path)
    assert scan.voxels.dtype == dtype
    assert scan.voxels.dtype.isnative
    np.testing.assert_array_equal(scan.voxels, VOXELS)
    np.testing.assert_allclose(scan.affine, mgh_affine(path), atol=1e-4)
    assert scan.oriented
    assert scan.notes == ()

    mask = mask_of(path)
    np.testing.assert_array_equal(mask.affine, scan.affine)
    assert mask.shape == scan.grid
    assert mask.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(mask.get_qform(), scan.affine, atol=1e-3)


def test_frames_of_a_freesurfer_volume_are_read_one_at_a_time(tmp_path):
    frames = np.stack([VOXELS, VOXELS + 1000, VOXELS - 7], axis=3)
    nib.save(nib.MGHImage(frames, OBLIQUE), tmp_path / "scan.mgz")
    for frame in range(3):
        np.testing.assert_array_equal(read_scan(tmp_path / "scan.mgz", frame).voxels, frames[..., frame])
    with pytest.raises(MissingFrameError, match="3 frames"):
        read_scan(tmp_path / "scan.mgz")


def test_a_freesurfer_volume_without_directions_is_read_with_a_note(tmp_path):
    nib.save(nib.MGHImage(VOXELS, OBLIQUE), tmp_path / "scan.mgh")
    raw = bytearray((tmp_path / "scan.mgh").read_bytes())
    raw[28:30] = bytes(2)
    (tmp_path / "scan.mgh").write_bytes(raw)
    scan = read_scan(tmp_path / "scan.mgh")
    # FreeSurfer's default: the axes run to the left, down and to the front. (nibabel turns two of them around.)
    np.testing.assert_array_equal(scan.affine[:3], [[-1, 0, 0, 2], [0, 0, 1, -3], [0, -1, 0, 2.5]])
    assert "doesn't say where its axes point" in scan.notes[0]


@pytest.mark.parametrize("where", [3, 4, 8, 20, 30, 34])
@pytest.mark.parametrize("value", [b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff"])
def test_a_damaged_freesurfer_header_is_refused_in_one_line(tmp_path, where, value):
    nib.save(nib.MGHImage(VOXELS, OBLIQUE), tmp_path / "scan.mgh")
    raw = bytearray((tmp_path / "scan.mgh").read_bytes())
    raw[where : where + 4] = value
    (tmp_path / "scan.mgh").write_bytes(raw)
    try:
        read_scan(tmp_path / "scan.mgh", 0)
    except InputError as error:
        assert "\n" not in str(error)
        assert "scan.mgh" in str(error)


@pytest.mark.parametrize("cut", [0, 100, 284, 400])
@pytest.mark.parametrize("suffix", [".mgz", ".mgh"])
def test_a_freesurfer_volume_that_breaks_off_is_refused(tmp_path, suffix, cut):
    path = tmp_path / f"scan{suffix}"
    nib.save(nib.MGHImage(VOXELS, OBLIQUE), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: min(cut, len(whole) - 40)])
    with pytest.raises(InputError, match=r"truncated|empty|not a FreeSurfer"):
        read_scan(path)


@pytest.mark.parametrize("image_class", [nib.Nifti1Pair, nib.Nifti2Pair])
@pytest.mark.parametrize("zipped", ["", ".gz"])
def test_a_nifti_pair_is_read_by_either_name(tmp_path, image_class, zipped):
    nib.save(image_class(VOXELS, OBLIQUE), tmp_path / f"scan.img{zipped}")
    for name in (f"scan.img{zipped}", f"scan.hdr{zipped}"):
        scan = read_scan(tmp_path / name)
        np.testing.assert_array_equal(scan.voxels, VOXELS)
        np.testing.assert_array_equal(scan.affine, nib.load(tmp_path / name).affine)
        assert scan.notes == ()
        assert scan_name(tmp_path / name) == "scan"
        np.testing.assert_array_equal(mask_of(tmp_path / name).affine, scan.affine)


def test_half_a_pair_is_refused_with_the_name_of_the_other(tmp_path):
    nib.save(nib.Nifti1Pair(VOXELS, OBLIQUE), tmp_path / "scan.img")
    (tmp_path / "scan.hdr").rename(tmp_path / "kept")
    with pytest.raises(InputError, match=r"needs scan\.hdr beside it"):
        read_scan(tmp_path / "scan.img")
    (tmp_path / "kept").rename(tmp_path / "scan.hdr")
    (tmp_path / "scan.img").unlink()
    with pytest.raises(InputError, match=r"needs scan\.img beside it"):
        read_scan(tmp_path / "scan.hdr")


def test_an_analyze_image_is_refused_since_left_and_right_are_unknown(tmp_path):
    nib.save(nib.AnalyzeImage(VOXELS, np.eye(4)), tmp_path / "scan.img")
    with pytest.raises(InputError, match=r"Analyze.*nib-convert"):
        read_scan(tmp_path / "scan.hdr")


@pytest.mark.parametrize("offset", [0, 348, 351])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_voxels_begin_behind_the_header_whatever_it_says(tmp_path, offset, suffix):
    path = patched(save_nifti(tmp_path / f"scan{suffix}", VOXELS, sform=OBLIQUE), vox_offset=offset)
    scan = read_scan(path)
    np.testing.assert_array_equal(scan.voxels, VOXELS)
    assert scan.notes == (
        f"scan{suffix}: its header says that voxels begin at byte {offset}, inside of it: read from 352",
    )


def test_nifti_2_voxels_begin_behind_the_header_whatever_it_says(tmp_path):
    path = save_nifti(tmp_path / "scan.nii", VOXELS, sform=OBLIQUE, image_class=nib.Nifti2Image, big_endian=True)
    raw = bytearray(path.read_bytes())
    assert struct.unpack_from(">q", raw, 168) == (544,)
    struct.pack_into(">q", raw, 168, 0)
    path.write_bytes(raw)
    np.testing.assert_array_equal(read_scan(path).voxels, VOXELS)


def test_a_quaternion_a_hair_above_unit_length_is_normalized_with_a_note(tmp_path):
    path = save_nifti(tmp_path / "scan.nii.gz", VOXELS, qform=OBLIQUE)
    exact = affine((np.pi, 0, 0), (0.7, 0.9, 4.5), offset=(1, 2, 3))
    expected = nib.load(save_nifti(tmp_path / "exact.nii", VOXELS, qform=exact)).affine
    fields = nib.load(tmp_path / "exact.nii").header
    path = patched(
        path,
        **{name: fields[name] for name in ("pixdim", "qoffset_x", "qoffset_y", "qoffset_z")},
        quatern_b=1.000003,
        quatern_c=0,
        quatern_d=0,
    )
    scan = read_scan(path)
    np.testing.assert_allclose(scan.affine, expected, atol=1e-5)
    assert len(scan.notes) == 1
    assert "quaternion" in scan.notes[0]
    write_mask(tmp_path / "mask.nii", np.ones(scan.grid, bool), scan)
    raw = (tmp_path / "mask.nii").read_bytes()
    assert raw[256:260] == np.float32(1.000003).tobytes()
    assert read_scan(tmp_path / "mask.nii").affine.tolist() == scan.affine.tolist()
    with pytest.raises(InputError, match="w2 should be positive"):
        read_scan(patched(path, quatern_b=3))


def test_sform_and_qform_that_disagree_are_noted_with_the_distance(tmp_path):
    path = save_nifti(tmp_path / "scan.nii", VOXELS, sform=FLIPPED, qform=FLIPPED @ np.diag([-1, 1, 1, 1]))
    scan = read_scan(path)
    np.testing.assert_array_equal(scan.affine, nib.load(path).affine)
    assert len(scan.notes) == 1
    assert "sform and qform place it differently, by up to 6 mm" in scan.notes[0]
    assert "--plane" in scan.notes[0]


@pytest.mark.parametrize("moved", [0.0, 0.01])
def test_a_rounding_between_sform_and_qform_is_no_note(tmp_path, moved):
    shifted = OBLIQUE.copy()
    shifted[0, 3] += moved
    assert read_scan(save_nifti(tmp_path / "scan.nii", VOXELS, sform=OBLIQUE, qform=shifted)).notes == ()


def test_extensions_are_passed_over_in_silence(tmp_path, capfd):
    image = nib.Nifti1Image(VOXELS, OBLIQUE)
    image.header.extensions.append(Nifti1Extension("comment", b"DOE^JANE"))
    nib.save(image, tmp_path / "scan.nii")
    raw = bytearray((tmp_path / "scan.nii").read_bytes())
    raw[352:356] = struct.pack("<i", 24)  # A size that is no multiple of 16.
    (tmp_path / "scan.nii").write_bytes(raw)
    scan = read_scan(tmp_path / "scan.nii")
    np.testing.assert_array_equal(scan.voxels, VOXELS)
    assert scan.notes == ()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x.nrrd", "SimpleITK"),
        ("x.mha", "3D Slicer"),
        ("x.mhd", "ITK-SNAP"),
        ("x.gipl.gz", "SimpleITK"),
        ("x.mgz", "mri_convert"),
        ("x.hdr", "nib-convert"),
        ("x.dcm", "dcm2niix"),
        ("IM0001", "dcm2niix"),
        ("x.mnc", "mnc2nii"),
        ("x.par", "parrec2nii"),
        ("x.HEAD", "AFNI"),
        ("x.bmp", "save it as PNG"),
        ("x.webp", "save it as PNG"),
        ("x.tar.gz", "unpack it"),
    ],
)
def test_a_format_that_is_not_read_names_its_way_out(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"x\n")
    with pytest.raises(InputError, match=words) as caught:
        read_scan(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["folder", "folder.nii.gz", "folder.nrrd"])
def test_a_folder_is_told_as_one(tmp_path, name):
    (tmp_path / name).mkdir()
    for ask in (read_scan, scan_name) if "." not in name else (read_scan,):
        with pytest.raises(InputError, match="is a folder: give one image file"):
            ask(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".hdr", ".img", ".mgz", ".png", ".tif", ".jpg"])
def test_a_named_pipe_is_refused_at_once(tmp_path, suffix):
    os.mkfifo(tmp_path / f"scan{suffix}")
    started = time.monotonic()
    with pytest.raises(InputError, match=r"is a named pipe|beside it"):
        read_scan(tmp_path / f"scan{suffix}")
    assert time.monotonic() - started < 5


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="the system doesn't say how much memory there is")
def test_more_voxels_than_memory_holds_are_refused_before_they_are_read(tmp_path):
    path = patched(save_nifti(tmp_path / "scan.nii", VOXELS), dim=[3, 8192, 32767, 8192, 1, 1, 1, 1])
    with path.open("r+b") as file:
        file.truncate(352 + 2 * 8192 * 32767 * 8192)  # A sparse file of 4 TB: it takes no room.
    with pytest.raises(InputError, match="does not fit in memory"):
        read_scan(path)
