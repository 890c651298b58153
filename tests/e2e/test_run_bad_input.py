"""What bad input gets from `samri-run`: exit 1 or 2, one line, nothing written."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from PIL import Image

from samri_runtime.run import main
from tests.support.scans import brain_like, save_nifti

BOX = ("--box", 12, 10, 30, 41)
SLICE = brain_like((50, 64))
VOLUME = brain_like((20, 24, 16))


def refused(
    bundle: Path, source: Path, folder: Path, *options: object, code: int, words: str, names: object = None
) -> None:
    """Run, and check the exit code, the one line with the file's name in it, and that no file was made or changed."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    arguments = ["--model", bundle, "--input", source, "--output", folder / "new" / "out", *options]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("samri-run: error: ")
    assert words in lines[0]
    assert str(source if names is None else names) in lines[0]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def nifti_bytes(data: np.ndarray) -> bytes:
    return nib.Nifti1Image(data, np.eye(4)).to_bytes()


def damaged_files(folder: Path) -> Iterator[tuple[str, str]]:
    """File name and words of the error; each file is written as it comes."""
    good = nifti_bytes(SLICE)
    zipped = gzip.compress(good)
    rgb = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    broken = SLICE.astype(np.float32)
    broken[:] = np.nan
    png = folder / "whole.png"
    Image.fromarray(np.zeros((30, 30), np.uint8)).save(png)
    contents: dict[str, tuple[bytes, str]] = {
        "cut.nii": (good[: len(good) // 2], "is truncated"),
        "cut header.nii": (good[:200], "is not a NIfTI file"),
        "cut.nii.gz": (zipped[: len(zipped) // 2], "gzip"),
        "cut trailer.nii.gz": (zipped[:-3], "gzip"),
        "flipped.nii.gz": (zipped[:3000] + bytes([zipped[3000] ^ 255]) + zipped[3001:], "gzip"),
        "empty.nii.gz": (b"", "is empty"),
        "text.nii": (b"patient 7, see other folder\n" * 50, "is not a NIfTI file"),
        "text.nii.gz": (b"patient 7, see other folder\n" * 50, "is not a NIfTI file"),
        "five.nii.gz": (gzip.compress(nifti_bytes(np.zeros((4, 4, 4, 2, 3), np.int16))), "5-D"),
        "complex.nii.gz": (gzip.compress(nifti_bytes(SLICE.astype(np.complex64))), "complex"),
        "color.nii.gz": (gzip.compress(nifti_bytes(np.zeros((9, 9), rgb))), "RGB"),
        "nan.nii.gz": (gzip.compress(nifti_bytes(broken)), "nothing but NaN or infinite values"),
        "nothing.nii.gz": (gzip.compress(nifti_bytes(np.zeros((0, 9), np.int16))), "no voxels"),
        "line.nii.gz": (gzip.compress(nifti_bytes(np.zeros(9, np.int16))), "not an image"),
        "cut.png": (png.read_bytes()[:-9], "damaged PNG"),
        "text.png": (b"no picture", "is not a PNG"),
        "empty.jpg": (b"", "is empty"),
        "scan.dcm": (b"\0" * 128 + b"DICM", "dcm2niix"),
        "noname": (b"?", "not a kind of image"),
    }
    png.unlink()
    for name, (content, words) in contents.items():
        (folder / name).write_bytes(content)
        yield name, words
    yield "missing.nii.gz", "does not exist"
    (folder / "folder.nii").mkdir()
    yield "folder.nii", "is a folder"
    tifffile.imwrite(folder / "pages.tif", np.zeros((3, 20, 20), np.uint8), photometric="minisblack")
    yield "pages.tif", "3 pages"


@pytest.mark.slow
def test_an_image_that_can_not_be_used_is_refused_in_one_line(bundle, tmp_path, capfd):
    for name, words in damaged_files(tmp_path):
        refused(bundle, tmp_path / name, tmp_path, *BOX, code=1, words=words)
    # C libraries write to the terminal past Python: they must not either.
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--box", 70, 10, 90, 41], 1, "outside the image, which is 64 wide and 50 high"),
        (["--box", -20, 10, -2, 41], 1, "outside the image"),
        (["--box", 30, 10, 12, 41], 1, "reversed"),
        (["--box", 12, 41, 30, 10], 1, "reversed"),
        (["--box", 12, 10, 12, 41], 1, "no area"),
        (["--box", "nan", 10, 30, 41], 1, "finite"),
        (["--box", 12, 10, "inf", 41], 1, "finite"),
        (["--point", 64, 3], 1, "outside the image"),
        (["--point", 3, -1], 1, "outside the image"),
        (["--point", 3, "nan"], 1, "finite"),
        ([*BOX, "--negative-point", 3, 77], 1, "outside the image"),
        ([], 2, "nothing to segment"),
        ([*BOX, *BOX, "--point", 20, 20], 2, "several boxes"),
        ([*BOX, "--slice", 0], 2, "is one slice"),
        ([*BOX, "--plane", "axial"], 2, "is one slice"),
        ([*BOX, "--axis", 1, "--plane", "axial"], 2, "not both"),
        ([*BOX, "--frame", 1], 1, "one frame only"),
        ([*BOX, "--provider", "cpu", "--device", "cpu"], 2, "not both"),
        ([*BOX, "--device", "abacus"], 2, "unknown device 'abacus'"),
    ],
)
def test_a_prompt_or_option_that_makes_no_sense_is_refused_in_one_line(bundle, tmp_path, options, code, words):
    source = save_nifti(tmp_path / "scan.nii.gz", SLICE)
    refused(bundle, source, tmp_path, *options, code=code, words=words, names="")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ([], 2, "choose --slice 0 to 15 of axis 2"),
        (["--axis", 0], 2, "choose --slice 0 to 19 of axis 0"),
        (["--plane", "coronal"], 2, "choose --slice 0 to 23 of --plane coronal"),
        (["--slice", 16], 1, "slices 0 to 15"),
        (["--slice", -1], 1, "slices 0 to 15"),
        (["--slice", 24, "--axis", 1], 1, "slices 0 to 23"),
        (["--slice", 20, "--plane", "sagittal"], 1, "slices 0 to 19"),
    ],
)
def test_a_slice_that_is_missing_or_out_of_range_is_refused_with_the_range(bundle, tmp_path, options, code, words):
    source = save_nifti(tmp_path / "scan.nii.gz", VOLUME, sform=np.eye(4))
    refused(bundle, source, tmp_path, "--box", 2, 3, 9, 10, *options, code=code, words=words)


def test_a_4d_image_without_a_frame_is_wrong_usage_that_says_the_range(bundle, tmp_path):
    source = save_nifti(tmp_path / "bold.nii.gz", np.stack([VOLUME] * 3, axis=-1))
    refused(bundle, source, tmp_path, *BOX, "--slice", 3, code=2, words="choose one with --frame 0 to 2")
    refused(bundle, source, tmp_path, *BOX, "--slice", 3, "--frame", 3, code=1, words="frames 0 to 2")


@pytest.mark.parametrize(
    "options",
    [
        ["--box", 1, 2, 3],
        ["--box", "a", 2, 3, 4],
        ["--axis", 3],
        ["--plane", "oblique"],
        ["--provider", "gpu"],
        ["--provider-option", "device_id"],
        ["--threads", 0],
        ["--bix", 1],
    ],
)
def test_options_that_can_not_be_parsed_are_wrong_usage(bundle, tmp_path, options):
    source = save_nifti(tmp_path / "scan.nii.gz", SLICE)
    arguments = ["-c", bundle, "-i", source, "-o", tmp_path / "out", *BOX, *options]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def changed_byte(folder: Path) -> None:
    data = bytearray((folder / "decoder.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "decoder.onnx").write_bytes(data)


def edited(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        values = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**values, **changes}))

    return edit


def path_that_leaves(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"encoder.onnx"', '"../encoder.onnx"'))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (changed_byte, "changed since the export"),
        (lambda folder: (folder / "encoder.onnx").unlink(), "is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "holds no manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "not valid JSON"),
        (path_that_leaves, "plain relative path"),
        (edited(format_version="2.0"), "pip install -U samri"),
        (shutil.rmtree, "no such folder"),
    ],
    ids=["changed byte", "missing graph", "missing manifest", "half a manifest", "leaving path", "newer", "missing"],
)
def test_a_bundle_that_can_not_be_trusted_is_refused_in_one_line(bundle, tmp_path, damage, words):
    source = save_nifti(tmp_path / "scan.nii.gz", SLICE)
    shutil.copytree(bundle, tmp_path / "model")
    damage(tmp_path / "model")
    refused(tmp_path / "model", source, tmp_path, *BOX, code=1, words=words, names=tmp_path / "model")


def test_a_checkpoint_is_pointed_to_the_export(tmp_path):
    source = save_nifti(tmp_path / "scan.nii.gz", SLICE)
    (tmp_path / "samri_vitb_box.pth").write_bytes(b"PK")
    refused(
        tmp_path / "samri_vitb_box.pth",
        source,
        tmp_path,
        *BOX,
        code=1,
        words="samri-export --checkpoint",
        names=tmp_path / "samri_vitb_box.pth",
    )


def test_of_a_scan_and_a_model_that_are_both_missing_the_scan_is_named(tmp_path):
    refused(tmp_path / "no-model", tmp_path / "no.nii.gz", tmp_path, *BOX, code=1, words="does not exist")


def test_another_bundle_than_the_expected_one_is_refused(bundle, tmp_path):
    source = save_nifti(tmp_path / "scan.nii.gz", SLICE)
    refused(bundle, source, tmp_path, *BOX, "--expect-sha256", "0" * 64, code=1, words="not the expected", names=bundle)


@pytest.mark.parametrize("output", ["scan.nii.gz/out", "scan.nii.gz/new/out"])
def test_an_output_folder_that_is_a_file_or_in_one_is_refused_in_one_line(bundle, tmp_path, output):
    source = save_nifti(tmp_path / "scan.nii.gz", SLICE)
    arguments = ["-c", bundle, "-i", source, "-o", tmp_path / output, *BOX]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 1
    assert result.stderr == (
        f"samri-run: error: cannot write {tmp_path / output}: {source} is not a folder: name another --output\n"
    )


def test_an_output_that_is_called_like_a_file_is_wrong_usage(bundle, tmp_path):
    source = save_nifti(tmp_path / "scan.nii.gz", SLICE)
    arguments = ["-c", bundle, "-i", source, "-o", source, *BOX]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert "looks like a file: give a folder" in result.stderr


def process(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    code = "import sys; from samri_runtime.run import main; main(prog_name='samri-run')"
    return subprocess.run(
        [sys.executable, "-c", code, *[str(argument) for argument in arguments]],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        text=True,
        timeout=300,
        check=False,
    )


def nifti2_with(path: Path, **fields: object) -> Path:
    """A NIfTI-2 slice with header fields that nibabel wouldn't write by itself."""
    header = nib.Nifti2Header()
    header.set_data_shape(SLICE.shape)
    header.set_data_dtype(np.int16)
    header.set_sform(np.eye(4), 1)
    header["magic"], header["vox_offset"] = b"n+2", 544
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + bytes(4) + SLICE.tobytes(order="F"))
    return path


def png_promising(path: Path, width: int, height: int) -> Path:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    pixels = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + pixels)
    return path


def cut_frames(path: Path) -> Path:
    whole = save_nifti(path, np.stack([brain_like((40, 50))[:, :, np.newaxis]] * 5, axis=-1)).read_bytes()
    path.write_bytes(whole[:-3])
    return path


PROCESS_CASES: dict[str, tuple[Callable[[Path], Path], list[object], int, str]] = {
    "affine of NaN": (
        lambda f: nifti2_with(f / "a.nii", srow_x=[np.nan, 0, 0, 0]),
        [],
        1,
        "an affine of NaN or infinite numbers",
    ),
    "affine of inf": (
        lambda f: nifti2_with(f / "a.nii", srow_z=[0, 0, np.inf, 0]),
        [],
        1,
        "an affine of NaN or infinite numbers",
    ),
    "huge offset": (lambda f: nifti2_with(f / "a.nii", vox_offset=2**62), [], 1, "is truncated"),
    "cut 4-D": (lambda f: cut_frames(f / "a.nii.gz"), ["--frame", 0], 1, "gzip"),
    "no pixels": (lambda f: png_promising(f / "a.png", 0, 0), [], 1, "promises 0 x 0 pixels"),
    "endless png": (
        lambda f: png_promising(f / "a.png", 2**31 - 1, 2**31 - 1),
        [],
        1,
        "more than 268435456 are not read",
    ),
    "short png": (lambda f: png_promising(f / "a.png", 30, 30), [], 1, "fewer pixels"),
    "long name": (lambda f: f / ("x" * 300 + ".nii.gz"), [], 1, "too long"),
    "empty name": (lambda f: Path(), ["--input", ""], 2, "the path is empty"),
    "empty output": (lambda f: save_nifti(f / "a.nii", SLICE), ["--output", ""], 2, "the path is empty"),
    "empty model": (lambda f: save_nifti(f / "a.nii", SLICE), ["--model", ""], 2, "the path is empty"),
    "no plane": (
        lambda f: save_nifti(f / "a.nii", VOLUME, sform=np.ones((4, 4))),
        ["--plane", "axial"],
        1,
        "a.nii: the affine",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", PROCESS_CASES)
def test_the_real_process_says_one_line_and_leaves_the_folder_alone(bundle, tmp_path, case):
    make, options, code, words = PROCESS_CASES[case]
    source = make(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    result = process("-c", bundle, "-i", source, "-o", tmp_path / "out", *BOX, *options, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (code, ""), result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert words in result.stderr
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_folder_called_like_a_result_is_refused_before_the_work(bundle, tmp_path):
    source = save_nifti(tmp_path / "scan.nii.gz", SLICE)
    (tmp_path / "out" / "scan_seg_.png").mkdir(parents=True)
    result = process("-c", bundle, "-i", source, "-o", tmp_path / "out", *BOX)
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        f"samri-run: error: cannot write {tmp_path / 'out' / 'scan_seg_.png'}: it is a folder: "
        "rename it, or name another output"
    ]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["scan_seg_.png"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("options", [[], ["--json"], ["--help"], ["--version"]])
def test_results_that_can_not_be_printed_are_one_line(bundle, tmp_path, options, unbuffered):
    source = save_nifti(tmp_path / "scan.nii.gz", SLICE)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        result = process(
            "-c", bundle, "-i", source, "-o", tmp_path / "out", *BOX, *options, stdout=full, env=environment
        )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        "samri-run: error: cannot print the results: No space left on device: send stdout elsewhere"
    )
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_name_that_is_no_text_is_printed_as_it_is(bundle, tmp_path, options):
    source = tmp_path / os.fsdecode(b"sch\xe4del.nii.gz")
    save_nifti(tmp_path / "a.nii.gz", SLICE).rename(source)
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    code = "import sys; from samri_runtime.run import main; main(prog_name='samri-run')"
    command = [sys.executable, "-c", code, "-c", bundle, "-i", source, "-o", tmp_path / "out", *BOX, *options]
    result = subprocess.run([str(part) for part in command], capture_output=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    if options:
        files = json.loads(result.stdout)["files"]
    else:
        files = [os.fsdecode(line) for line in result.stdout.splitlines()[1:]]  # The first is on the object.
    assert sorted(files) == sorted(str(path) for path in (tmp_path / "out").iterdir())


def test_a_picture_without_nibabel_is_refused_with_the_line_that_installs_it(bundle, tmp_path):
    Image.fromarray(np.zeros((30, 40), np.uint8)).save(tmp_path / "a.png")
    code = "import sys; sys.modules['nibabel'] = None;from samri_runtime.run import main; main(prog_name='samri-run')"
    command = [sys.executable, "-c", code, "-c", bundle, "-i", tmp_path / "a.png", "-o", tmp_path / "out", *BOX]
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert "pip install 'samri[io]'" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_folder_without_permission_is_refused_in_one_line(bundle, tmp_path):
    source = save_nifti(tmp_path / "scan.nii.gz", SLICE)
    (tmp_path / "new").mkdir(mode=0o500)
    refused(bundle, source, tmp_path, *BOX, code=1, words="is not writable", names=tmp_path / "new" / "out")


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_files_that_can_not_be_written_whole_leave_none_behind(bundle, tmp_path):
    import resource

    source = save_nifti(tmp_path / "scan.nii.gz", SLICE)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "scan_seg_.nii.gz").write_bytes(b"from before")
    # The mask fits, the overlay doesn't.
    limit = 8192
    result = process(
        *("-c", bundle, "-i", source, "-o", tmp_path / "out", "--overwrite", *BOX),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert result.returncode == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert f"cannot write {tmp_path / 'out'}" in result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["scan_seg_.nii.gz"]
    assert (tmp_path / "out" / "scan_seg_.nii.gz").read_bytes() == b"from before"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 KiB, where this system lets us mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount") is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    command = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no small file system here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_said_in_one_line_and_left_as_it_was(bundle, tmp_path, small_disk):
    source = save_nifti(tmp_path / "scan.nii.gz", SLICE)
    arguments = ["-c", bundle, "-i", source, "-o", small_disk / "out", *BOX]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "No space left on device" in result.stderr
    assert list(small_disk.iterdir()) == []


def test_a_read_only_disk_is_said_in_one_line(bundle, tmp_path, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    source = save_nifti(tmp_path / "scan.nii.gz", SLICE)
    arguments = ["-c", bundle, "-i", source, "-o", small_disk / "out", *BOX]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f"samri-run: error: cannot write {small_disk / 'out'}: {small_disk} is not writable: name another --output"
    ]


def test_the_real_process_prints_results_only_and_loads_no_torch(bundle, tmp_path):
    source = save_nifti(tmp_path / "scan.nii.gz", SLICE)
    code = (
        "import sys; from samri_runtime.run import main; main(standalone_mode=False);"
        "print(sorted({'torch', 'onnx', 'segment_anything', 'samri.model'} & set(sys.modules)), file=sys.stderr)"
    )
    arguments = ["-c", bundle, "-i", source, "-o", tmp_path / "out", *BOX]
    result = subprocess.run(
        [sys.executable, "-c", code, *[str(argument) for argument in arguments]],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert sorted(result.stdout.splitlines()[1:]) == sorted(str(path) for path in (tmp_path / "out").iterdir())
    assert result.stderr.splitlines()[-1] == "[]"
    assert not list(tmp_path.rglob(".*"))
