"""Scans and pictures, with nibabel and Pillow as independent readers."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import nibabel as nib
import numpy as np
import PIL.Image

from samri.errors import InputError
from samri.hashing import file_sha256
from samri.io import read_scan
from samri_runtime.run import main as samri_run
from tests.fuzz import mutate
from tests.fuzz.ground import Ground
from tests.fuzz.trial import BrokenPromiseError, Case, invoke
from tests.support.scans import OBLIQUE, brain_like, save_nifti

_VOXELS_AT = 352


def nifti(_ground: Ground, seeds: Path) -> Case:
    """`read_scan` gives nibabel's voxels and affine, or refuses."""
    plain = _nifti_files(seeds)

    def case(rng: np.random.Generator, scratch: Path) -> None:
        content = mutate.pick(rng, plain)
        way = rng.random()
        if way < 0.5:
            damaged, expected = mutate.nifti(rng, content), None
        elif way < 0.6:
            damaged, expected = gzip.compress(mutate.nifti(rng, content), 1, mtime=0), None
        else:
            damaged, expected = mutate.gzipped(rng, content), content
        path = scratch / mutate.pick(rng, ("x.nii", "x.nii.gz"))
        path.write_bytes(damaged)
        if expected is None:
            expected = gzip.decompress(damaged) if damaged[:2] == b"\x1f\x8b" else damaged
        try:
            scan = read_scan(path, mutate.pick(rng, (None, 0, 0, 1)))
        except InputError as error:
            if "is truncated" in str(error) and way < 0.6:
                _refuse_whole(expected)
            raise
        _compare_with_nibabel(scan, expected)

    return case


def picture(_ground: Ground, seeds: Path) -> Case:
    """Damage that the format can tell is refused; what is read is what the undamaged file holds, or Pillow reads."""
    whole = _pictures()

    def case(rng: np.random.Generator, scratch: Path) -> None:
        suffix, content = mutate.pick(rng, whole)
        repacked = suffix == ".png" and rng.random() < 0.4
        if suffix == ".tif" and rng.random() < 0.03:
            damaged = _endless_tiff(int(rng.integers(1000, 76_000)))
        elif repacked:
            damaged = _other_chunk(rng, content)
        else:
            damaged = mutate.pick(rng, (mutate.data, mutate.data, mutate.flipped, mutate.cut))(rng, content)
        path = scratch / f"x{mutate.pick(rng, (suffix, suffix, suffix, '.png', '.jpg', '.tif', '.bmp', '.nii'))}"
        path.write_bytes(damaged)
        voxels = read_scan(path).voxels
        path.write_bytes(content)
        if path.suffix == ".bmp":
            raise BrokenPromiseError("a .bmp was read")
        if suffix == ".png" and not repacked and not np.array_equal(voxels, read_scan(path).voxels):
            raise BrokenPromiseError("a damaged PNG gave other pixels")
        if suffix == ".jpg" and not np.array_equal(voxels, read_scan(path).voxels):
            try:
                PIL.Image.open(io.BytesIO(damaged)).load()
            except Exception as error:
                raise BrokenPromiseError(f"a damaged JPEG gave other pixels, and Pillow refuses it: {error}") from error

    return case


def run(ground: Ground, seeds: Path) -> Case:
    """`samri-run` on damaged inputs writes all results, whose hashes hold, or leaves no folder behind."""
    files = [(".nii.gz", gzip.compress(content, 1, mtime=0)) for content in _nifti_files(seeds)]
    headers, whole = _nifti_files(seeds), _pictures()

    def case(rng: np.random.Generator, scratch: Path) -> None:
        if rng.random() < 0.6:
            suffix, content = ".nii", mutate.nifti(rng, mutate.pick(rng, headers))
        else:
            suffix, content = mutate.pick(rng, [*files, *whole])
            content = content if rng.random() < 0.4 else mutate.data(rng, content)
        path, output = scratch / f"x{suffix}", scratch / "out"
        path.write_bytes(content)
        options: list[object] = ["-c", ground.bundle, "-i", path, "-o", output, "--provider", "cpu"]
        options += ["--box", *np.round(rng.uniform(-3, 30, 4), 1)] if rng.random() < 0.3 else ["--box", 3, 3, 17, 15]
        if suffix.startswith(".nii"):
            options += mutate.pick(
                rng, (["--slice", 1], ["--slice", 1, "--frame", 0], [], ["--plane", "coronal", "--slice", 3])
            )
        if invoke(samri_run, *options).exit_code:
            if output.exists():
                raise BrokenPromiseError(f"a failed run left {sorted(each.name for each in output.iterdir())}")
            return
        check_run(output, path)

    return case


def check_run(output: Path, scan: Path) -> None:
    """A finished run's folder: four files, whole, and nothing hidden; the provenance is of this scan."""
    name = scan.name.removesuffix(".gz").rsplit(".", 1)[0]
    found = sorted(each.name for each in output.iterdir())
    expected = sorted([f"{name}_overlay.png", f"{name}_seg_.json", f"{name}_seg_.nii.gz", f"{name}_seg_.png"])
    if found != expected:
        raise BrokenPromiseError(f"a finished run wrote {found}, not {expected}")
    provenance = json.loads((output / f"{name}_seg_.json").read_text())
    if provenance["input"]["sha256"] != file_sha256(scan):
        raise BrokenPromiseError("the provenance is of another scan")
    mask = np.asanyarray(nib.load(output / f"{name}_seg_.nii.gz").dataobj)
    counted = sum(label["voxels"] for label in provenance["candidates"][0])
    if np.count_nonzero(mask) != counted:
        raise BrokenPromiseError(f"the mask has {np.count_nonzero(mask)} voxels, and its provenance tells {counted}")
    for picture_file in output.glob("*.png"):
        PIL.Image.open(picture_file).load()


def _refuse_whole(content: bytes) -> None:
    """A file that was said to be truncated must be so for nibabel too."""
    try:
        np.asanyarray(nib.Nifti1Image.from_bytes(content).dataobj)
    except Exception:
        return
    raise BrokenPromiseError("read_scan says that the file is truncated, and nibabel reads it")


def _compare_with_nibabel(scan: Any, content: bytes) -> None:
    offset = struct.unpack_from("<f", content, 108)[0]
    if struct.unpack_from("<i", content)[0] == 348 and 0 <= offset < _VOXELS_AT:
        # The standard's least place of voxels: before it lies the header.
        content = content[:108] + struct.pack("<f", _VOXELS_AT) + content[112:]
    try:
        with np.errstate(all="ignore"):
            image = nib.Nifti1Image.from_bytes(content)
            voxels = np.asanyarray(image.dataobj)
    except Exception as error:
        if struct.unpack_from("<i", content)[0] != 348:
            return  # NIfTI-2, or the other byte order.
        raise BrokenPromiseError(f"read_scan reads what nibabel refuses: {type(error).__name__}: {error}") from error
    if voxels.ndim == 4:
        voxels = voxels[..., scan.frame]
    trailing = [side for side in voxels.shape[3:] if side != 1]
    if trailing or voxels.size != scan.voxels.size:
        raise BrokenPromiseError(f"read_scan gives {scan.voxels.shape} where nibabel gives {voxels.shape}")
    given, told = scan.voxels.reshape(scan.voxels.shape), voxels.reshape(scan.voxels.shape)
    finite = np.isfinite(told) if told.dtype.kind == "f" else np.ones(told.shape, bool)
    if not np.array_equal(given[finite], told[finite]):
        raise BrokenPromiseError("read_scan gives other voxels than nibabel")
    if np.isfinite(image.affine).all() and not np.allclose(scan.affine, image.affine, rtol=1e-6, atol=1e-6):
        raise BrokenPromiseError("read_scan gives another affine than nibabel")


def _nifti_files(folder: Path) -> list[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    volume = brain_like((24, 20, 5))
    scaled = nib.Nifti1Image(volume, OBLIQUE)
    scaled.header.set_slope_inter(0.5, -3)
    paths = [
        save_nifti(folder / "volume.nii", volume, sform=OBLIQUE, qform=np.diag([1, 1, 3, 1]), qform_code=2),
        save_nifti(folder / "flat.nii", brain_like((24, 20)).astype(np.float32), qform=np.diag([1, 2, 1, 1])),
        save_nifti(folder / "frames.nii", brain_like((12, 20, 3, 2)).astype(np.uint8), sform=OBLIQUE),
        folder / "scaled.nii",
    ]
    nib.save(scaled, paths[-1])
    return [path.read_bytes() for path in paths]


def _pictures() -> list[tuple[str, bytes]]:
    """Suffix and content: every kind that is read, small."""
    rng = np.random.default_rng(0)
    gray = cv2.GaussianBlur(rng.integers(0, 256, (24, 32), dtype=np.uint8), (0, 0), 1.5)
    color = np.dstack([gray, gray[::-1], 255 - gray])
    made: list[tuple[str, bytes]] = []
    for suffix, image, flags in (
        (".png", gray, []),
        (".png", gray.astype(np.uint16) * 257, []),
        (".png", color, []),
        (".jpg", cv2.resize(gray, (128, 96)), [cv2.IMWRITE_JPEG_QUALITY, 90]),
        (".jpg", cv2.resize(color, (128, 96)), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]),
        (".tif", gray, [cv2.IMWRITE_TIFF_COMPRESSION, 1]),
        (".tif", gray.astype(np.uint16) * 257, [cv2.IMWRITE_TIFF_COMPRESSION, 5]),
        (".bmp", color, []),
    ):
        made.append((suffix, cv2.imencode(suffix, image, flags)[1].tobytes()))
    palette, pages = io.BytesIO(), io.BytesIO()
    PIL.Image.fromarray(color).quantize(16).save(palette, "png")
    frames = [PIL.Image.fromarray(gray), PIL.Image.fromarray(gray[::-1])]
    frames[0].save(pages, "tiff", save_all=True, append_images=frames[1:], compression="tiff_adobe_deflate")
    return [*made, (".png", palette.getvalue()), (".tif", pages.getvalue())]


def _other_chunk(rng: np.random.Generator, content: bytes) -> bytes:
    """A PNG with one chunk changed, and its checksum made right again."""
    chunks, at = [], 8
    while at < len(content):
        length = struct.unpack_from(">I", content, at)[0]
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    number = int(rng.integers(len(chunks)))
    kind, inside = chunks[number]
    if kind == b"IHDR" or rng.random() < 0.7:
        chunks[number] = (kind, mutate.data(rng, inside))
    else:
        chunks.insert(
            number, (mutate.pick(rng, (b"tEXt", b"zTXt", b"iCCP", b"tRNS", b"PLTE", b"eXIf", b"acTL")), rng.bytes(40))
        )
    packed = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    return content[:8] + b"".join(packed)


def _endless_tiff(directories: int) -> bytes:
    """Empty directories, each naming the next one: counting them by walking from the first takes hours."""
    links = b"".join(struct.pack("<HI", 0, 8 + 6 * (number + 1)) for number in range(directories))
    return b"II*\0" + struct.pack("<I", 8) + links + struct.pack("<HI", 0, 0)
