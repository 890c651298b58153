"""NIfTI in and out, with nibabel as the oracle for where a voxel lies."""

from __future__ import annotations

import gzip
import itertools
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine
from nibabel.nifti1 import Nifti1Extension

from samri.errors import InputError, OutputError
from samri.io import MissingFrameError, read_scan, scan_name, write_mask
from tests.support.examples import examples
from tests.support.scans import FLIPPED, OBLIQUE, OBLIQUE_FLIPPED, affine, save_nifti

GEOMETRY = [
    *("dim_info", "pixdim", "xyzt_units", "qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
]


def bits(header: nib.Nifti1Header) -> dict[str, bytes]:
    return {name: np.asarray(header[name]).tobytes() for name in GEOMETRY}


def mask_of(scan_path: Path, voxel: tuple[int, ...], frame: int | None = None) -> nib.Nifti1Image:
    """Write a mask with one voxel through samri and read it with nibabel."""
    scan = read_scan(scan_path, frame)
    mask = np.zeros(scan.grid, bool)
    mask[voxel] = True
    out = scan_path.parent / "mask.nii.gz"
    write_mask(out, mask, scan)
    return nib.load(out)


@pytest.mark.parametrize("data_shape", [(7, 9), (1, 7, 9), (7, 9, 1), (7, 9, 5), (7, 9, 5, 3)])
@pytest.mark.parametrize(
    "forms",
    [
        {"sform": OBLIQUE},
        {"qform": OBLIQUE},
        {"sform": FLIPPED, "qform": FLIPPED},
        {"sform": OBLIQUE, "sform_code": 2, "qform": OBLIQUE_FLIPPED, "qform_code": 1},
        {"sform": OBLIQUE_FLIPPED, "sform_code": 4, "qform": FLIPPED, "qform_code": 3},
        {},
    ],
    ids=["sform only", "qform only", "both alike", "both different", "template codes", "neither"],
)
def test_a_voxel_lies_at_the_same_millimetres_before_and_after(tmp_path, data_shape, forms):
    data = np.zeros(data_shape, np.int16)
    voxel = tuple(n // 2 for n in data_shape[:3])
    data[voxel] = 100
    path = save_nifti(tmp_path / "scan.nii.gz", data, **forms)
    before = nib.load(path)

    after = mask_of(path, voxel, frame=0 if len(data_shape) == 4 else None)

    assert after.shape == data_shape[:3]
    assert after.get_data_dtype() == np.uint8
    found = np.argwhere(np.asarray(after.dataobj))
    assert len(found) == 1
    bright = np.argwhere(np.asarray(before.dataobj) == 100)[:1, : len(voxel)]
    pad = [(0, 0), (0, 3 - len(voxel))]
    np.testing.assert_array_equal(
        apply_affine(after.affine, np.pad(found, pad)), apply_affine(before.affine, np.pad(bright, pad))
    )
    np.testing.assert_array_equal(after.affine, before.affine)
    for form in ("get_sform", "get_qform"):
        first, second = getattr(before, form)(coded=True), getattr(after, form)(coded=True)
        assert first[1] == second[1]
        assert (first[0] is None) == (second[0] is None)
        if first[0] is not None:
            np.testing.assert_array_equal(first[0], second[0])
    assert after.header.get_xyzt_units() == ("mm", "sec")
    assert bits(after.header) == bits(before.header)


@settings(max_examples=examples(60))
@given(
    angles=st.tuples(*[st.floats(-3.1, 3.1)] * 3),
    zooms=st.tuples(*[st.floats(0.0625, 20, width=32)] * 3),
    flips=st.tuples(*[st.sampled_from((1, -1))] * 3),
    offset=st.tuples(*[st.floats(-500, 500, width=32)] * 3),
    codes=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    units=st.tuples(st.sampled_from(("unknown", "meter", "mm", "micron")), st.sampled_from(("unknown", "sec", "msec"))),
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    version=st.sampled_from((nib.Nifti1Image, nib.Nifti2Image)),
    big_endian=st.booleans(),
    suffix=st.sampled_from((".nii", ".nii.gz")),
)
def test_the_header_fields_of_the_grid_survive_bit_for_bit(
    tmp_path_factory, angles, zooms, flips, offset, codes, units, shape, version, big_endian, suffix
):
    folder = tmp_path_factory.mktemp("grid")
    matrix = affine(angles, zooms, flips, offset)
    path = save_nifti(
        folder / f"scan{suffix}",
        np.ones(shape, np.float32),
        sform=matrix,
        sform_code=codes[0],
        qform=matrix,
        qform_code=codes[1],
        units=units,
        image_class=version,
        big_endian=big_endian,
    )
    try:
        before = nib.load(path)
    except ValueError:  # A quaternion longer than 1 in its last digit, which nibabel writes and doesn't read.
        reject()

    after = mask_of(path, (0,) * min(len(shape), 3), frame=0)

    assert type(after) is version
    assert after.shape == tuple(shape[:3])
    assert after.header.endianness == before.header.endianness
    assert bits(after.header) == bits(before.header)
    np.testing.assert_array_equal(after.affine, before.affine)
    assert after.header.get_zooms() == before.header.get_zooms()[: len(after.shape)]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("big_endian", [False, True])
def test_voxels_come_in_the_files_own_dtype_and_native_byte_order(tmp_path, dtype, big_endian):
    data = np.arange(60).reshape(3, 4, 5).astype(dtype)
    scan = read_scan(save_nifti(tmp_path / "scan.nii", data, big_endian=big_endian))
    assert scan.voxels.dtype == np.dtype(dtype)
    assert scan.voxels.dtype.isnative
    np.testing.assert_array_equal(scan.voxels, data)


@pytest.mark.parametrize("frame", [None, 2])
def test_a_slope_and_an_intercept_are_applied(tmp_path, frame):
    shape = (4, 5, 6) if frame is None else (4, 5, 6, 3)
    image = nib.Nifti1Image(np.arange(np.prod(shape), dtype=np.int16).reshape(shape), OBLIQUE)
    image.header.set_slope_inter(0.25, -7)
    nib.save(image, tmp_path / "scan.nii.gz")
    expected = nib.load(tmp_path / "scan.nii.gz").get_fdata()
    scan = read_scan(tmp_path / "scan.nii.gz", frame)
    np.testing.assert_array_equal(scan.voxels, expected if frame is None else expected[..., frame])
    assert scan.voxels.dtype == np.float64


@pytest.mark.parametrize("slope", [0, float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", ["i2", "u1", "f4", "f8"])
def test_a_slope_that_is_no_scaling_leaves_the_voxels_as_they_are(tmp_path, dtype, slope):
    voxels = np.arange(60).astype(dtype).reshape(3, 4, 5)
    nib.save(nib.Nifti1Image(voxels, OBLIQUE), tmp_path / "scan.nii")
    content = bytearray((tmp_path / "scan.nii").read_bytes())
    content[112:116] = np.array(slope, "<f4").tobytes()
    (tmp_path / "scan.nii").write_bytes(content)
    scan = read_scan(tmp_path / "scan.nii")
    np.testing.assert_array_equal(scan.voxels, voxels)
    assert scan.voxels.dtype == voxels.dtype


def test_a_mask_of_a_scaled_scan_has_no_scaling(tmp_path):
    image = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), OBLIQUE)
    image.header.set_slope_inter(0.25, -7)
    nib.save(image, tmp_path / "scan.nii.gz")
    mask = mask_of(tmp_path / "scan.nii.gz", (1, 2, 3))
    scaling: Any = mask.dataobj
    assert (scaling.slope, scaling.inter) == (1, 0)
    raw = gzip.decompress((tmp_path / "mask.nii.gz").read_bytes())
    slope, inter = np.frombuffer(raw[112:120], "<f4")
    assert (slope, inter) == (1, 0) or np.isnan([slope, inter]).all()


def test_nothing_of_the_header_but_the_geometry_reaches_the_mask(tmp_path):
    image = nib.Nifti1Image(np.ones((3, 4, 5), np.int16), OBLIQUE)
    image.header["descrip"] = b"DOE^JANE"
    image.header["db_name"] = b"PAT0001"
    image.header["aux_file"] = b"jane.txt"
    image.header["cal_max"] = 4000
    image.header.extensions.append(Nifti1Extension("comment", b"DOE^JANE"))
    nib.save(image, tmp_path / "scan.nii.gz")
    mask = mask_of(tmp_path / "scan.nii.gz", (1, 2, 3))
    raw = gzip.decompress((tmp_path / "mask.nii.gz").read_bytes())
    assert b"DOE" not in raw
    assert b"PAT0001" not in raw
    assert b"jane" not in raw
    assert mask.header["cal_max"] == 0
    assert len(raw) == 352 + 60


@pytest.mark.parametrize(("highest", "dtype"), [(1, np.uint8), (255, np.uint8), (256, np.uint16), (65535, np.uint16)])
def test_more_than_255_objects_are_stored_in_16_bits(tmp_path, highest, dtype):
    scan = read_scan(save_nifti(tmp_path / "scan.nii", np.zeros((6, 7, 2), np.float32)))
    labels = np.zeros(scan.grid, np.int64)
    labels[3, 4, 1] = highest
    write_mask(tmp_path / "mask.nii.gz", labels, scan)
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert mask.get_data_dtype() == dtype
    np.testing.assert_array_equal(np.asarray(mask.dataobj), labels)


@pytest.mark.parametrize(
    "labels", [np.full((3, 4), -1), np.full((3, 4), 65536), np.zeros((3, 4)), np.zeros((4, 3), np.uint8)]
)
def test_what_is_no_label_map_of_the_scan_is_refused(tmp_path, labels):
    scan = read_scan(save_nifti(tmp_path / "scan.nii", np.zeros((3, 4), np.float32)))
    with pytest.raises(ValueError, match=r"label|integers|fit"):
        write_mask(tmp_path / "mask.nii.gz", labels, scan)
    assert not (tmp_path / "mask.nii.gz").exists()


def test_equal_masks_are_equal_files(tmp_path):
    scan = read_scan(save_nifti(tmp_path / "scan.nii", np.zeros((3, 4), np.float32)))
    for name in ("a.nii.gz", "b.nii.gz"):
        write_mask(tmp_path / name, np.ones((3, 4), bool), scan)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize(
    ("stored", "grid"),
    [
        ((5, 6, 7, 1), (5, 6, 7)),
        ((5, 6, 1, 1), (5, 6, 1)),
        ((1, 5, 6, 1), (1, 5, 6)),
        ((5, 1, 6, 1), (5, 1, 6)),
        ((5, 6, 7, 1, 1), (5, 6, 7)),
        ((5, 6, 7, 1, 1, 1, 1), (5, 6, 7)),
    ],
)
def test_a_single_frame_needs_no_frame_option(tmp_path, stored, grid):
    data = np.arange(np.prod(stored), dtype=np.int16).reshape(stored)
    scan = read_scan(save_nifti(tmp_path / "scan.nii.gz", data))
    assert scan.grid == grid
    np.testing.assert_array_equal(scan.voxels, data.reshape(grid))


@pytest.mark.parametrize("shape", [(5, 6, 7, 4), (5, 6, 1, 4), (5, 1, 6, 4)])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_frames_of_a_4d_file_are_read_one_at_a_time(tmp_path, shape, suffix):
    data = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    path = save_nifti(tmp_path / f"scan{suffix}", data)
    for frame in range(4):
        scan = read_scan(path, frame)
        assert (scan.frame, scan.frames) == (frame, 4)
        np.testing.assert_array_equal(scan.voxels, data[..., frame])
    with pytest.raises(MissingFrameError, match="has 4 frames: choose one with --frame 0 to 3"):
        read_scan(path)
    for frame in (4, -1):
        with pytest.raises(InputError, match=rf"frames 0 to 3: there is no frame {frame}"):
            read_scan(path, frame)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_one_frame_costs_the_memory_of_one_frame(tmp_path, suffix):
    path = save_nifti(tmp_path / f"scan{suffix}", np.ones((64, 64, 32, 20), np.int16))
    frame_bytes = 64 * 64 * 32 * 2
    read_scan(path, 0)
    tracemalloc.start()
    read_scan(path, 11)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * frame_bytes


def test_gzip_is_known_by_its_content(tmp_path):
    data = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    plain = save_nifti(tmp_path / "a.nii", data)
    zipped = save_nifti(tmp_path / "b.nii.gz", data)
    plain.rename(tmp_path / "c.nii.gz")
    zipped.rename(tmp_path / "d.nii")
    for name in ("c.nii.gz", "d.nii"):
        np.testing.assert_array_equal(read_scan(tmp_path / name).voxels, data)


@settings(max_examples=examples(80))
@given(data=st.data())
def test_a_nifti_that_breaks_off_anywhere_is_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("cut")
    suffix = data.draw(st.sampled_from((".nii", ".nii.gz")))
    voxels = np.random.default_rng(0).integers(0, 999, (6, 7, 8)).astype(np.int16)
    path = save_nifti(folder / f"scan{suffix}", voxels)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(InputError) as caught:
        read_scan(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=examples(150))
@given(data=st.data())
def test_a_changed_byte_in_a_gzip_never_changes_voxels_unseen(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("flip")
    voxels = np.random.default_rng(0).integers(0, 999, (6, 7, 8)).astype(np.int16)
    path = save_nifti(folder / "scan.nii.gz", voxels)
    changed = bytearray(path.read_bytes())
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(changed)
    try:
        scan = read_scan(path)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        np.testing.assert_array_equal(scan.voxels, voxels)


@settings(max_examples=examples(200))
@given(position=st.integers(0, 351), value=st.integers(0, 255))
def test_a_changed_header_byte_is_read_or_refused_in_one_line(tmp_path_factory, position, value):
    path = save_nifti(tmp_path_factory.mktemp("header") / "scan.nii", np.ones((6, 7, 8), np.int16), sform=OBLIQUE)
    changed = bytearray(path.read_bytes())
    changed[position] = value
    path.write_bytes(changed)
    try:
        read_scan(path, 0)
    except InputError as error:
        assert "\n" not in str(error)
        assert str(path) in str(error)


def test_a_header_that_promises_terabytes_is_refused_before_memory_is_taken(tmp_path):
    for suffix in (".nii", ".nii.gz"):
        path = save_nifti(tmp_path / f"scan{suffix}", np.ones((4, 4, 4), np.int16))
        raw = bytearray(gzip.decompress(path.read_bytes()) if suffix == ".nii.gz" else path.read_bytes())
        raw[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()
        path.write_bytes(gzip.compress(bytes(raw)) if suffix == ".nii.gz" else bytes(raw))
        with pytest.raises(InputError, match=r"is truncated: its header promises 54000000000000 bytes"):
            read_scan(path)


def test_what_nibabel_repairs_in_a_header_is_noted(tmp_path, capfd):
    path = save_nifti(tmp_path / "scan.nii", np.ones((4, 4, 4), np.int16))
    raw = bytearray(path.read_bytes())
    raw[80:84] = np.array([-2], "<f4").tobytes()  # pixdim[1], a voxel size.
    path.write_bytes(raw)
    scan = read_scan(path)
    assert len(scan.notes) == 1
    assert "pixdim" in scan.notes[0]
    assert capfd.readouterr().err == ""


RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (np.zeros((4, 4, 4), np.complex64), "complex numbers"),
        (np.zeros((4, 4, 4), RGB), "RGB colors"),
        (np.zeros((4, 4, 4, 2, 3), np.int16), "5-D"),
        (np.zeros((4, 4, 4, 1, 3), np.int16), "5-D"),
        (np.zeros((4, 4, 4, 2, 3, 1), np.int16), "6-D"),
        (np.zeros((0, 4, 4), np.int16), "no voxels"),
        (np.zeros(7, np.int16), "not an image"),
    ],
)
def test_what_is_no_gray_scan_is_refused_by_name(tmp_path, data, words):
    path = save_nifti(tmp_path / "scan.nii.gz", data)
    with pytest.raises(InputError, match=words) as caught:
        read_scan(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("lowest", "background"), [(40, 0), (0, 0), (-5, -5)])
def test_nan_and_infinite_voxels_are_background_and_counted(tmp_path, bad, lowest, background):
    data = np.arange(lowest, lowest + 120, dtype=np.float32).reshape(4, 5, 6)
    data[1:3, 2, 3] = bad
    scan = read_scan(save_nifti(tmp_path / "scan.nii.gz", data))
    assert np.unique(scan.voxels[1:3, 2, 3]).tolist() == [background]
    np.testing.assert_array_equal(scan.voxels[np.isfinite(data)], data[np.isfinite(data)])
    assert scan.voxels.dtype == np.float32
    assert scan.notes == (f"scan.nii.gz: 2 of 120 values are NaN or infinite: read as {background}, as background",)


def test_a_scan_of_nothing_but_nan_is_refused(tmp_path):
    path = save_nifti(tmp_path / "scan.nii.gz", np.full((4, 5, 6), np.nan, np.float32))
    with pytest.raises(InputError, match="nothing but NaN"):
        read_scan(path)


def test_files_that_are_not_there_or_not_nifti_are_refused_in_plain_words(tmp_path):
    cases = {
        "missing.nii.gz": (None, "does not exist"),
        "text.nii": (b"subject 12, T1, see the other folder\n" * 40, "is not a NIfTI file"),
        "text.nii.gz": (b"subject 12, T1, see the other folder\n" * 40, "is not a NIfTI file"),
        "empty.nii": (b"", "is empty"),
        "emptied.nii.gz": (gzip.compress(b""), "is empty"),
        "slices.dcm": (b"DICM", "dcm2niix"),
        ".nii.gz": (b"", "not a kind of image"),
    }
    for name, (content, words) in cases.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match=words) as caught:
            read_scan(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        read_scan(tmp_path / "folder.nii")


def test_the_header_of_a_two_file_nifti_is_refused(tmp_path):
    nib.save(nib.Nifti1Pair(np.ones((3, 3, 3), np.int16), np.eye(4)), tmp_path / "pair.img")
    (tmp_path / "pair.hdr").rename(tmp_path / "pair.nii")
    with pytest.raises(InputError, match="two-file NIfTI"):
        read_scan(tmp_path / "pair.nii")


def test_a_mask_that_can_not_be_written_leaves_nothing(tmp_path):
    scan = read_scan(save_nifti(tmp_path / "scan.nii", np.zeros((3, 4), np.float32)))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        write_mask(tmp_path / "file" / "mask.nii.gz", np.ones((3, 4), bool), scan)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "scan.nii"]


@pytest.mark.parametrize(
    ("file", "name"),
    [("a/case001.nii.gz", "case001"), ("case.v2.nii", "case.v2"), ("IMG.PNG", "IMG"), ("t1.nii.TIF", "t1.nii")],
)
def test_results_are_named_after_the_scan(file, name):
    assert scan_name(file) == name


def test_spacing_is_the_voxel_size_along_each_axis(tmp_path):
    zooms = (0.5, 2.0, 1.25)
    for angles, flips in itertools.product([(0, 0, 0), (0.3, -0.2, 1.0)], [(1, 1, 1), (-1, 1, -1)]):
        path = save_nifti(tmp_path / "scan.nii", np.zeros((3, 4, 5), np.uint8), sform=affine(angles, zooms, flips))
        assert read_scan(path).spacing == pytest.approx(zooms, rel=1e-6)


def nifti2(path: Path, **fields: object) -> Path:
    """A NIfTI-2 volume with header fields that nibabel wouldn't write by itself."""
    header = nib.Nifti2Header()
    header.set_data_shape((4, 5, 6))
    header.set_data_dtype(np.int16)
    header.set_sform(np.eye(4), 1)
    header["magic"], header["vox_offset"] = b"n+2", 544
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + bytes(4) + bytes(4 * 5 * 6 * 2))
    return path


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    "fields",
    [
        {"srow_y": "bad"},
        {"sform_code": 0, "qform_code": 1, "qoffset_x": "bad"},
        {"sform_code": 0, "qform_code": 1, "quatern_b": "bad"},
        {"sform_code": 0, "qform_code": 1, "pixdim": "bad"},
        {"sform_code": 0, "qform_code": 0, "pixdim": "bad"},
    ],
    ids=["sform", "qoffset", "quaternion", "pixdim of the qform", "pixdim alone"],
)
def test_an_affine_that_is_not_finite_is_refused_by_name(tmp_path, fields, bad):
    values = {name: np.full(nib.Nifti2Header()[name].shape, bad) if v == "bad" else v for name, v in fields.items()}
    path = nifti2(tmp_path / "scan.nii", **values)
    with pytest.raises(InputError, match=r"affine|header") as caught:
        read_scan(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_enormous_affine_is_read_without_a_warning(tmp_path):
    scan = read_scan(nifti2(tmp_path / "scan.nii", srow_x=[1e200, 0, 0, 0], srow_y=[1.7e308, 1.7e308, 0, 0]))
    assert all(np.isfinite(scan.spacing))


@pytest.mark.parametrize("offset", [np.inf, -np.inf, np.nan])
def test_voxels_that_begin_nowhere_are_refused(tmp_path, offset):
    path = save_nifti(tmp_path / "scan.nii", np.ones((4, 4, 4), np.int16))
    raw = bytearray(path.read_bytes())
    raw[108:112] = np.array([offset], "<f4").tobytes()
    path.write_bytes(raw)
    with pytest.raises(InputError, match="invalid header"):
        read_scan(path)


@pytest.mark.parametrize("frame", [0, 1, 3])
def test_a_4d_gzip_is_checked_to_its_end_whichever_frame_is_read(tmp_path, frame):
    voxels = np.random.default_rng(0).integers(0, 999, (20, 20, 9, 4)).astype(np.int16)
    whole = save_nifti(tmp_path / "scan.nii.gz", voxels).read_bytes()
    flipped = whole[:-2000] + bytes([whole[-2000] ^ 255]) + whole[-1999:]
    shorter = gzip.compress(gzip.decompress(whole)[:-100])
    for name, content in {"cut": whole[:-600], "trailer": whole[:-3], "flipped": flipped, "shorter": shorter}.items():
        (tmp_path / f"{name}.nii.gz").write_bytes(content)
        with pytest.raises(InputError, match=f"{name}.nii.gz.* again$"):
            read_scan(tmp_path / f"{name}.nii.gz", frame)


@pytest.mark.parametrize("suffix", [".nii.gz", ".png"])
def test_a_name_that_is_too_long_is_refused_in_one_line(tmp_path, suffix):
    with pytest.raises(InputError, match="too long"):
        read_scan(tmp_path / ("x" * 300 + suffix))


def test_readers_in_several_threads_leave_nibabels_log_as_it_was(tmp_path):
    path = save_nifti(tmp_path / "scan.nii", np.ones((4, 4, 4), np.int16))
    raw = bytearray(path.read_bytes())
    raw[80:84] = np.array([-2], "<f4").tobytes()
    path.write_bytes(raw)
    before = list(nib.imageglobals.logger.handlers)
    with ThreadPoolExecutor(8) as pool:
        scans = list(pool.map(read_scan, [path] * 200))
    assert nib.imageglobals.logger.handlers == before
    assert {len(scan.notes) for scan in scans} == {1}
