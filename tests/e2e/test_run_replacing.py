"""Whose files `samri-run` replaces: its own of the very same slice, and nobody else's."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from samri.errors import InputError, OutputError
from samri.hashing import hashed_as_read
from samri.io import read_scan, write_mask
from samri.ownership import read_sealed, sealed_json
from samri.privacy import without_folders
from samri_runtime.run import main
from tests.support.files import contents
from tests.support.scans import brain_like, save_nifti

BOX = ("--box", 5, 5, 20, 22)
ALL = ["scan_overlay.png", "scan_seg_.json", "scan_seg_.nii.gz", "scan_seg_.png"]


def run(bundle: Path, source: Path, output: Path, *options: object) -> Result:
    given = ["-c", bundle, "-i", source, "-o", output, *BOX, "--provider", "cpu", *options]
    return CliRunner().invoke(main, [str(word) for word in given])


def refused(result: Result, code: int = 1) -> str:
    assert result.exit_code == code, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if "error" in line]
    return line


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_nifti(tmp_path / "in" / "scan.nii.gz", brain_like((30, 34, 6)))


@pytest.fixture(autouse=True)
def made(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()


@pytest.mark.parametrize("name", ALL)
def test_a_persons_file_is_replaced_only_when_asked(bundle: Path, source: Path, tmp_path: Path, name: str) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / name).write_bytes(b"mine")
    message = refused(run(bundle, source, output, "--slice", 3))
    assert name in message
    assert "--overwrite" in message
    assert contents(output) == {name: b"mine"}
    result = run(bundle, source, output, "--slice", 3, "--overwrite")
    assert result.exit_code == 0
    assert name in result.stderr
    assert sorted(contents(output)) == ALL


def test_the_same_slice_of_the_same_scan_replaces_its_own_results(bundle: Path, source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    for options in (("--multimask",), (), ("--no-png",)):
        assert run(bundle, source, output, "--slice", 3, *options).exit_code == 0
    assert sorted(contents(output)) == ["scan_seg_.json", "scan_seg_.nii.gz"]
    record = read_sealed(output / "scan_seg_.json")
    assert record is not None
    digest = hashlib.sha256((output / "scan_seg_.nii.gz").read_bytes()).hexdigest()
    assert record["files"] == {"scan_seg_.nii.gz": digest}


def test_what_a_person_edited_since_is_theirs(bundle: Path, source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    for name in ALL:
        assert run(bundle, source, output, "--slice", 3, "--overwrite").exit_code == 0
        text = (output / name).read_bytes()
        (output / name).write_bytes(text.replace(b'"samri-run"', b'"samri-run" ') if name.endswith("json") else b"mine")
        before = contents(output)
        assert "scan_" in refused(run(bundle, source, output, "--slice", 3))
        assert contents(output) == before


def test_another_scan_or_slice_of_the_same_name_is_refused(bundle: Path, source: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = save_nifti(tmp_path / "other" / "scan.nii.gz", brain_like((30, 34, 6))[::-1])
    output = tmp_path / "out"
    assert run(bundle, source, output, "--slice", 3).exit_code == 0
    before = contents(output)
    assert "another scan of the same name" in refused(run(bundle, other, output, "--slice", 3))
    assert "slice 3 along axis 2, not 2" in refused(run(bundle, source, output, "--slice", 2))
    assert contents(output) == before
    assert run(bundle, other, output, "--slice", 3, "--overwrite").exit_code == 0
    assert contents(output) != before


@pytest.mark.parametrize("name", ["mask.nii.gz", "mask.png", "a/mask.NII", "mask.json"])
def test_an_output_that_looks_like_a_file_is_wrong_usage(bundle: Path, source: Path, tmp_path: Path, name: str) -> None:
    assert "looks like a file" in refused(run(bundle, source, tmp_path / name, "--slice", 3), 2)
    assert not (tmp_path / name).exists()


def test_a_failed_run_leaves_no_folder_and_no_lock(bundle: Path, source: Path, tmp_path: Path) -> None:
    refused(run(bundle, source, tmp_path / "a" / "out", "--slice", 99))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_one_run_at_a_time_and_a_kill_leaves_nothing(bundle: Path, source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    holds = "import sys, time; from pathlib import Path; from samri_runtime._result_files import claimed\n"
    holds += "from samri.staging import staged_files\n"
    holds += "with claimed(Path(sys.argv[1]), Path('scan.nii.gz')), staged_files(sys.argv[1]) as stage:\n"
    holds += " (stage / 'x').write_text(''); print(flush=True); time.sleep(60)\n"
    with subprocess.Popen([sys.executable, "-c", holds, output], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert "another samri-run" in refused(run(bundle, source, output, "--slice", 3))
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert run(bundle, source, output, "--slice", 3).exit_code == 0
    assert sorted(contents(output)) == ALL


def test_a_scan_that_is_replaced_during_the_work_keeps_the_hash_of_what_was_read(
    bundle: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from samri_runtime.run import _command

    was, real = hashlib.sha256(source.read_bytes()).hexdigest(), _command.segment  # type: ignore[attr-defined]

    def slow(*given: object, **more: object) -> object:
        save_nifti(source, np.zeros((30, 34, 6), np.int16))
        return real(*given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(_command, "segment", slow)
    assert run(bundle, source, tmp_path / "out", "--slice", 3).exit_code == 0
    assert json.loads((tmp_path / "out" / "scan_seg_.json").read_text())["input"]["sha256"] == was


@pytest.mark.parametrize("by_renaming", [True, False])
def test_a_file_that_changes_while_it_is_read_has_no_hash(tmp_path: Path, by_renaming: bool) -> None:
    path = tmp_path / "scan.nii"
    path.write_bytes(b"old")
    with hashed_as_read(path) as sha256:
        assert sha256() == hashlib.sha256(b"old").hexdigest()
    with pytest.raises(InputError, match="changed while it was read"), hashed_as_read(path) as sha256:
        if by_renaming:
            (tmp_path / "new").write_bytes(b"old")
            (tmp_path / "new").replace(path)
        else:
            path.write_bytes(b"newer")
        sha256()


def test_a_mask_never_takes_the_place_of_its_scan(source: Path) -> None:
    scan, before = read_scan(source), source.read_bytes()
    assert scan.sha256 == hashlib.sha256(before).hexdigest()
    with pytest.raises(OutputError, match="is the scan itself"):
        write_mask(source, np.zeros(scan.grid, np.uint8), scan)
    assert source.read_bytes() == before


def test_the_provenance_holds_no_folders(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "Doe, John (1950)"
    folder.mkdir()
    scan = save_nifti(folder / "scan.nii.gz", brain_like((30, 34, 6)))
    cache = folder / "cache"
    cache.write_text("no folder")
    result = run(bundle, scan, folder / "out", "--plane", "axial", "--slice", 3, "--cache-dir", cache)
    assert result.exit_code == 0, result.stderr
    assert "Doe, John" in result.stderr
    record = (folder / "out" / "scan_seg_.json").read_text()
    assert len(json.loads(record)["notes"]) > 1
    assert "Doe" not in record
    assert str(tmp_path) not in record


def test_notes_lose_folders_and_nothing_else() -> None:
    folders = [Path("/data/Doe, John"), Path("p1")]
    for note, expected in (
        ("/data/Doe, John/scan.nii.gz: a note", "scan.nii.gz: a note"),
        ("p1/scan.nii.gz: xp1/y", "scan.nii.gz: xp1/y"),
        ("can't write /data/Doe, John: full", "can't write the folder: full"),
        ("see /home/x/.config/samri/tuned.json)", "see tuned.json)"),
        ("3/4 of it, 2 m/s and/or ./x", "3/4 of it, 2 m/s and/or ./x"),
    ):
        assert without_folders(note, folders) == expected


def test_a_record_is_believed_only_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    text = sealed_json({"program": "x", "zeros": "0" * 64}, tmp_path, ["a"])
    record = tmp_path / "record.json"
    record.write_text(text)
    assert read_sealed(record) == json.loads(text)
    for changed in (text.replace('"x"', '"y"'), text.replace("a", "b", 1), text + " ", "[]", "{", ""):
        record.write_text(changed)
        assert read_sealed(record) is None
    record.unlink()
    os.mkfifo(record)
    assert read_sealed(record) is None


def test_only_the_names_of_results_are_believed_of_a_record(bundle: Path, source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert run(bundle, source, output, "--slice", 3).exit_code == 0
    (output / "thesis.tex").write_text("mine")
    values = json.loads((output / "scan_seg_.json").read_text())
    names = [*values.pop("files"), "thesis.tex"]
    del values["sha256"]
    (output / "scan_seg_.json").write_text(sealed_json(values, output, names))
    assert run(bundle, source, output, "--slice", 3).exit_code == 0
    assert (output / "thesis.tex").read_text() == "mine"
