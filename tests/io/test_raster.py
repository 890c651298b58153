"""PNG, JPEG and TIFF, with Pillow and tifffile as oracles."""

from __future__ import annotations

import io
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from samri.errors import InputError, MissingDependencyError
from samri.io import read_scan, write_mask, write_png
from tests.support.examples import examples

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (6, 9), dtype=np.uint8)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
RGBA = RNG.integers(0, 256, (6, 9, 4), dtype=np.uint8)


def wide(image: np.ndarray) -> np.ndarray:
    return image.astype(np.uint16) * 257 - 3


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".PNG"])
@pytest.mark.parametrize("image", [GRAY, RGB, RGBA], ids=["gray", "RGB", "RGBA"])
def test_8_bit_pictures_are_read_as_pillow_wrote_them(tmp_path, suffix, image):
    path = tmp_path / f"picture{suffix}"
    Image.fromarray(image).save(path)
    scan = read_scan(path)
    assert scan.kind == "raster"
    assert scan.grid == (6, 9)
    assert scan.voxels.dtype == np.uint8
    np.testing.assert_array_equal(scan.voxels, image[..., :3] if image.ndim == 3 else image)
    np.testing.assert_array_equal(scan.affine, np.eye(4))


@pytest.mark.parametrize("image", [GRAY, RGB, RGBA], ids=["gray", "RGB", "RGBA"])
@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("depth", [8, 16])
def test_tiffs_of_every_layout_are_read_as_tifffile_wrote_them(tmp_path, image, bigtiff, byteorder, depth):
    image = image if depth == 8 else wide(image)
    kind = "minisblack" if image.ndim == 2 else "rgb"
    alpha = {"extrasamples": ["unassalpha"]} if image.shape[-1] == 4 else {}
    path = tmp_path / "picture.tif"
    tifffile.imwrite(path, image, photometric=kind, bigtiff=bigtiff, byteorder=byteorder, compression="zlib", **alpha)
    scan = read_scan(path)
    assert scan.voxels.dtype == image.dtype
    np.testing.assert_array_equal(scan.voxels, image[..., :3] if image.ndim == 3 else image)


@pytest.mark.parametrize("image", [GRAY, RGB, RGBA], ids=["gray", "RGB", "RGBA"])
def test_16_bit_pngs_keep_their_depth_and_lose_their_alpha(tmp_path, image):
    image = wide(image)
    swapped = image if image.ndim == 2 else image[..., [2, 1, 0, *([3] if image.shape[2] == 4 else [])]]
    (tmp_path / "picture.png").write_bytes(cv2.imencode(".png", swapped)[1].tobytes())
    scan = read_scan(tmp_path / "picture.png")
    assert scan.voxels.dtype == np.uint16
    np.testing.assert_array_equal(scan.voxels, image[..., :3] if image.ndim == 3 else image)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "CMYK", "I;16", "F"])
def test_every_common_color_mode_gives_gray_or_rgb(tmp_path, mode):
    suffix = {"CMYK": ".jpg", "F": ".tif"}.get(mode, ".png")
    image = Image.fromarray(GRAY)
    image = Image.fromarray(wide(GRAY)) if mode == "I;16" else image.convert(mode)
    image.save(tmp_path / f"picture{suffix}")
    scan = read_scan(tmp_path / f"picture{suffix}")
    assert scan.grid == (6, 9)
    assert scan.voxels.shape in ((6, 9), (6, 9, 3))


def test_a_jpeg_is_read_in_rgb_order(tmp_path):
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 250
    Image.fromarray(red).save(tmp_path / "red.jpg", quality=100)
    assert np.abs(read_scan(tmp_path / "red.jpg").voxels.astype(int) - red).max() <= 3


# Exif 2.3, tag 274: how the stored picture is to be turned.
ORIENTATIONS = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.T,
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).T,
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_an_exif_orientation_is_applied_as_viewers_do(tmp_path, orientation, suffix):
    # Blocks of 8 pixels survive JPEG well.
    stored = np.kron(RNG.integers(0, 256, (3, 5), dtype=np.uint8), np.ones((8, 8), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"picture{suffix}"
    Image.fromarray(stored).save(path, exif=exif, **({"quality": 100} if suffix == ".jpg" else {}))
    shown = ORIENTATIONS[orientation](stored).astype(int)
    voxels = read_scan(path).voxels
    gray = (voxels if voxels.ndim == 2 else voxels[..., 0]).astype(int)
    assert gray.shape == shown.shape
    assert np.abs(gray - shown).max() <= 3


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64])
def test_tiffs_of_other_depths_keep_their_values(tmp_path, dtype):
    image = (GRAY.astype(dtype) - 100) * 3
    tifffile.imwrite(tmp_path / "picture.tif", image, photometric="minisblack")
    np.testing.assert_array_equal(read_scan(tmp_path / "picture.tif").voxels, image)


def test_nan_pixels_are_background_and_counted(tmp_path):
    image = GRAY.astype(np.float32)
    image[2, 3] = np.nan
    tifffile.imwrite(tmp_path / "picture.tif", image, photometric="minisblack")
    scan = read_scan(tmp_path / "picture.tif")
    assert scan.notes == ("picture.tif: 1 of 54 values are NaN or infinite: read as 0, as background",)
    assert scan.voxels[2, 3] == 0
    assert np.isfinite(scan.voxels).all()


@pytest.mark.parametrize("bigtiff", [False, True])
def test_a_tiff_of_several_pages_is_refused_with_their_number(tmp_path, bigtiff):
    tifffile.imwrite(tmp_path / "stack.tif", np.stack([GRAY] * 4), photometric="minisblack", bigtiff=bigtiff)
    with pytest.raises(InputError, match="4 pages"):
        read_scan(tmp_path / "stack.tif")


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(np.kron(RGB, np.ones((3, 3, 1), np.uint8)))
    options = {"PNG": {}, "JPEG": {"quality": 80}, "TIFF": {}, "JPEG with thumbnail": {}}[kind]
    image.save(buffer, kind.split()[0], **options)
    data = buffer.getvalue()
    if kind == "JPEG with thumbnail":
        # A whole JPEG inside an application segment: its end must not pass for the picture's.
        small = b"Exif\0\0" + data
        data = data[:2] + b"\xff\xe1" + (len(small) + 2).to_bytes(2, "big") + small + data[2:]
    return data


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "JPEG with thumbnail"])
@settings(max_examples=examples(60))
@given(data=st.data())
def test_a_picture_that_breaks_off_anywhere_is_refused(tmp_path_factory, kind, data):
    path = tmp_path_factory.mktemp("cut") / ("picture." + kind[:3].lower().replace("jpe", "jpg").replace("tif", "tif"))
    whole = encoded(kind)
    path.write_bytes(whole)
    expected = read_scan(path).voxels
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    try:
        scan = read_scan(path)
    except InputError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
    else:
        # Only padding at the end of a TIFF may be missing without harm.
        assert kind == "TIFF"
        np.testing.assert_array_equal(scan.voxels, expected)


@settings(max_examples=examples(100))
@given(data=st.data())
def test_a_changed_byte_in_a_png_is_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("flip") / "picture.png"
    changed = bytearray(encoded("PNG"))
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(changed)
    with pytest.raises(InputError):
        read_scan(path)


@settings(max_examples=examples(100))
@given(data=st.data())
def test_a_changed_byte_in_a_tiff_is_read_or_refused_in_one_line(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("flip") / "picture.tif"
    changed = bytearray(encoded("TIFF"))
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(changed)
    try:
        read_scan(path)
    except InputError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["picture.png", "picture.jpg", "picture.tif"])
@pytest.mark.parametrize("content", [b"", b"hello, I am text\n" * 20, b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0"])
def test_what_is_no_picture_is_refused_quietly_in_one_line(tmp_path, capfd, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_scan(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_picture_has_no_frames(tmp_path):
    write_png(tmp_path / "picture.png", GRAY)
    assert read_scan(tmp_path / "picture.png", 0).grid == (6, 9)
    with pytest.raises(InputError, match="has no frames"):
        read_scan(tmp_path / "picture.png", 1)


def test_names_beyond_ascii_are_read_and_written(tmp_path):
    path = tmp_path / "Schädel 頭.png"
    write_png(path, RGB)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), RGB)
    np.testing.assert_array_equal(read_scan(path).voxels, RGB)


def test_the_mask_of_a_picture_is_one_slice_with_an_identity_affine(tmp_path):
    write_png(tmp_path / "picture.png", RGB)
    mask = RNG.integers(0, 2, (6, 9)).astype(bool)
    write_mask(tmp_path / "mask.nii.gz", mask, read_scan(tmp_path / "picture.png"))
    written = nib.load(tmp_path / "mask.nii.gz")
    assert written.shape == (1, 6, 9)
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(written.affine, np.eye(4))
    np.testing.assert_array_equal(np.asarray(written.dataobj)[0], mask)


@pytest.mark.parametrize(("module", "name"), [("cv2", "picture.png"), ("nibabel", "scan.nii.gz")])
def test_a_missing_package_is_named_with_the_line_that_installs_it(tmp_path, monkeypatch, module, name):
    (tmp_path / name).write_bytes(b"never looked at")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'samri\[io\]'"):
        read_scan(tmp_path / name)


def chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def png(
    width: int, height: int, packed: bytes, *, depth: int = 8, color: int = 0, interlace: int = 0, more: bytes = b""
) -> bytes:
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, color, 0, 0, interlace])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "content",
    [
        png(0, 0, zlib.compress(b"")),
        png(0, 5, zlib.compress(bytes(5))),
        png(1, 2**27, zlib.compress(bytes(100))),
        png(10000, 10000, zlib.compress(bytes(100))),
        png(30, 30, zlib.compress(bytes(100))),
        png(9, 9, zlib.compress(bytes(91))),
        png(9, 9, zlib.compress(bytes(90))[:-5]),
        png(9, 9, b"no zlib stream"),
        png(9, 9, zlib.compress(b"\7" * 90)),
        png(9, 9, zlib.compress(b"\7" * 200), interlace=1),
        png(9, 9, zlib.compress(bytes(90)), depth=7),
        png(9, 9, zlib.compress(bytes(90)), color=5),
        png(9, 9, zlib.compress(bytes(90)), color=3),
        png(9, 9, zlib.compress(bytes(90)), interlace=2),
        b"\x89PNG\r\n\x1a\n" + chunk(b"IEND", b""),
        png(9, 9, b"")[:33] + chunk(b"IEND", b""),
    ],
)
def test_a_png_without_its_pixels_is_refused_quietly_in_one_line(tmp_path, capfd, content):
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged PNG") as caught:
        read_scan(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (5, 1), (1, 6), (9, 8), (600, 900)])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_interlaced_pngs_of_every_size_are_read_as_others_are(tmp_path, shape, mode):
    pixels = RNG.integers(0, 256, (*shape, 4), dtype=np.uint8)
    image = Image.fromarray(pixels).convert("RGB").quantize(9) if mode == "P" else Image.fromarray(pixels).convert(mode)
    image.save(tmp_path / "plain.png")
    expected = read_scan(tmp_path / "plain.png").voxels
    (tmp_path / "laced.png").write_bytes(interlaced((tmp_path / "plain.png").read_bytes()))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "laced.png")), np.asarray(image))
    np.testing.assert_array_equal(read_scan(tmp_path / "laced.png").voxels, expected)


def interlaced(plain: bytes) -> bytes:
    """The same PNG in seven passes (Adam7), packed bit by bit, since Pillow writes none."""
    image = Image.open(io.BytesIO(plain))
    width, height = image.size
    depth, color = plain[24], plain[25]
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    samples = np.asarray(image).astype(np.uint8).reshape(height, width * channels)
    bits = np.unpackbits(samples[..., np.newaxis], axis=2)[:, :, 8 - depth :].reshape(height, width, channels * depth)
    passes = b""
    for x, y, dx, dy in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        part = bits[y::dy, x::dx]
        if part.size:
            passes += b"".join(b"\0" + np.packbits(row.ravel()).tobytes() for row in part)
    start, end = plain.index(b"IHDR") + 21, plain.index(b"IDAT") - 4
    return png(width, height, zlib.compress(passes), depth=depth, color=color, interlace=1, more=plain[start:end])


def test_a_color_profile_that_libpng_dislikes_changes_nothing_and_prints_nothing(tmp_path, capfd):
    more = chunk(b"gAMA", (1).to_bytes(4, "big")) + chunk(b"iCCP", b"x\0\0" + zlib.compress(b"no profile"))
    (tmp_path / "picture.png").write_bytes(png(9, 9, zlib.compress(b"\0ABCDEFGHI" * 9), more=more))
    np.testing.assert_array_equal(read_scan(tmp_path / "picture.png").voxels, [list(b"ABCDEFGHI")] * 9)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_gray_with_alpha_is_gray(tmp_path, suffix):
    Image.fromarray(np.dstack([GRAY, GRAY[::-1]]), "LA").save(tmp_path / f"picture{suffix}")
    np.testing.assert_array_equal(read_scan(tmp_path / f"picture{suffix}").voxels, GRAY)


def test_a_picture_longer_than_nifti_1_can_say_gets_a_nifti_2_mask(tmp_path):
    write_png(tmp_path / "long.png", np.zeros((40000, 2), np.uint8))
    scan = read_scan(tmp_path / "long.png")
    mask = np.zeros((40000, 2), bool)
    mask[39999, 1] = True
    write_mask(tmp_path / "mask.nii.gz", mask, scan)
    written = nib.load(tmp_path / "mask.nii.gz")
    assert written.shape == (1, 40000, 2)
    np.testing.assert_array_equal(written.affine, np.eye(4))
    np.testing.assert_array_equal(np.asarray(written.dataobj)[0], mask)


def test_readers_in_several_threads_leave_opencvs_log_level_as_it_was(tmp_path):
    log = cv2 if hasattr(cv2, "setLogLevel") else cv2.utils.logging
    before = log.getLogLevel()
    write_png(tmp_path / "picture.png", GRAY)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read_scan, [tmp_path / "picture.png"] * 200))
    assert before != 0
    assert log.getLogLevel() == before


@pytest.mark.parametrize("progressive", [False, True])
def test_a_damaged_jpeg_is_refused_and_nothing_reaches_stderr(tmp_path, capfd, progressive):
    buffer = io.BytesIO()
    image = RNG.integers(0, 256, (90, 120), dtype=np.uint8)
    Image.fromarray(image).save(buffer, "JPEG", progressive=progressive)
    whole = buffer.getvalue()
    middle = len(whole) // 2
    (tmp_path / "whole.jpg").write_bytes(whole)
    (tmp_path / "damaged.jpg").write_bytes(whole[:middle] + whole[middle + 900 :])
    assert read_scan(tmp_path / "whole.jpg").grid == (90, 120)
    with pytest.raises(InputError, match=r"damaged JPEG file \(.*copy it again") as caught:
        read_scan(tmp_path / "damaged.jpg")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_tiff_whose_directories_overlap_is_refused_at_once(tmp_path):
    # Directories of 30,000 entries each, ten bytes apart: thousands of them in a small file.
    content = bytearray(b"II*\0" + (8).to_bytes(4, "little") + bytes(460_000))
    for start in range(8, 90_000, 10):
        content[start : start + 2] = (30_000).to_bytes(2, "little")
        end = start + 2 + 30_000 * 12
        content[end : end + 4] = (start + 10).to_bytes(4, "little")
    (tmp_path / "scan.tif").write_bytes(content)
    started = time.monotonic()
    with pytest.raises(InputError, match=r"pages|damaged"):
        read_scan(tmp_path / "scan.tif")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("kind", ["png", "jpg", "tif"])
def test_more_pixels_than_are_read_are_refused_before_decoding(tmp_path, kind):
    path = tmp_path / f"scan.{kind}"
    if kind == "png":
        path.write_bytes(png(20000, 20000, zlib.compress(bytes(100))))
    elif kind == "jpg":
        content = bytearray(encoded("JPEG"))
        frame = content.index(b"\xff\xc0")
        content[frame + 5 : frame + 9] = (60000).to_bytes(2, "big") * 2
        path.write_bytes(content)
    else:
        tifffile.imwrite(path, GRAY, photometric="minisblack")
        with tifffile.TiffFile(path, mode="r+") as file:
            for name in ("ImageWidth", "ImageLength"):
                file.pages[0].tags[name].overwrite(60000)
    with pytest.raises(InputError, match=r"x \d0000 pixels by its header, and more than 268435456"):
        read_scan(path)


def deflated(path: Path, **options: object) -> tuple[bytes, list[tuple[int, int]]]:
    """A TIFF of several strips or tiles, and where these lie: offset and length."""
    rng = np.random.default_rng(3)
    image = (rng.integers(0, 40, (150, 130)) * 5).astype(options.pop("dtype", np.uint8))
    tifffile.imwrite(path, image, compression="zlib", photometric="minisblack", **options)
    np.testing.assert_array_equal(read_scan(path).voxels, image)
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        return path.read_bytes(), list(zip(page.dataoffsets, page.databytecounts, strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {"rowsperstrip": 16},
        {"rowsperstrip": 150},
        {"rowsperstrip": 16, "dtype": np.uint16, "byteorder": ">"},
        {"tile": (64, 32), "bigtiff": True},
        {"tile": (256, 256), "predictor": True},
    ],
)
def test_a_changed_byte_in_a_deflated_strip_is_refused(tmp_path, options):
    path = tmp_path / "picture.tif"
    whole, strips = deflated(path, **options)
    rng = np.random.default_rng(4)
    for offset, length in strips * (1 + 20 // len(strips)):
        changed = bytearray(whole)
        changed[offset + rng.integers(2, length)] ^= 1 << rng.integers(8)  # Behind the stream's own header.
        path.write_bytes(changed)
        with pytest.raises(InputError, match=r"damaged TIFF file \((a strip|it)|of a kind that OpenCV"):
            read_scan(path)


@pytest.mark.parametrize("compression", ["zlib", "tiff_lzw", "packbits", "jpeg"])
def test_a_strip_that_breaks_off_is_refused_in_one_line(tmp_path, compression, capfd):
    path = tmp_path / "picture.tif"
    name = "tiff_adobe_deflate" if compression == "zlib" else compression
    Image.fromarray(np.kron(GRAY, np.ones((8, 8), np.uint8))).save(path, compression=name)
    read_scan(path)
    with tifffile.TiffFile(path, mode="r+b") as file:
        tag = file.pages[0].tags["StripByteCounts"]
        tag.overwrite([length // 2 for length in tag.value] if tag.count > 1 else tag.value[0] // 2)
    with pytest.raises(InputError) as caught:
        read_scan(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_strips_that_overlap_or_unpack_without_end_are_refused_at_once(tmp_path):
    path = tmp_path / "picture.tif"
    deflated(path, rowsperstrip=1)
    with tifffile.TiffFile(path, mode="r+b") as file:
        tags = file.pages[0].tags
        tags["StripByteCounts"].overwrite([path.stat().st_size - offset for offset in tags["StripOffsets"].value])
    with pytest.raises(InputError, match="its strips overlap"):
        read_scan(path)
    whole, _ = deflated(path, rowsperstrip=150)
    bomb = zlib.compress(bytes(300_000_000), 9)
    path.write_bytes(whole + bomb)
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags["StripOffsets"].overwrite(len(whole))
        file.pages[0].tags["StripByteCounts"].overwrite(len(bomb))
    with pytest.raises(InputError, match="it unpacks to more than its pixels"):
        read_scan(path)
