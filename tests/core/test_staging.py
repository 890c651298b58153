from __future__ import annotations

import os
from pathlib import Path

import pytest

from samri.errors import OutputError
from samri.staging import staged_file, staged_files, staged_folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    with staged_file(tmp_path / "new" / "mask.nii.gz") as stage:
        stage.write_text("half")
        assert stage.name == "mask.nii.gz"
        assert not (tmp_path / "new" / "mask.nii.gz").exists()
        stage.write_text("whole")
    assert (tmp_path / "new" / "mask.nii.gz").read_text() == "whole"
    assert names(tmp_path / "new") == ["mask.nii.gz"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(error), staged_file(tmp_path / "a.txt") as stage:
        stage.write_text("new")
        raise error
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_files_arrive_together_beside_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("kept")
    with staged_files(tmp_path) as stage:
        (stage / "one").write_text("1")
        (stage / "two").write_text("2")
        assert [name for name in names(tmp_path) if not name.startswith(".")] == ["kept.txt"]
    assert names(tmp_path) == ["kept.txt", "one", "two"]


def test_a_failure_removes_the_folders_it_made(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), staged_files(tmp_path / "a" / "b") as stage:
        (stage / "one").write_text("1")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_a_folder_appears_as_a_whole(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "bundle") as stage:
        (stage / "graph").write_text("1")
        assert not (tmp_path / "bundle").exists()
    assert names(tmp_path / "bundle") == ["graph"]
    assert names(tmp_path) == ["bundle"]


def test_an_existing_folder_is_replaced_only_when_asked(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "old").write_text("old")
    with pytest.raises(OutputError, match="--overwrite"), staged_folder(tmp_path / "bundle"):
        pytest.fail("entered")
    with pytest.raises(ValueError, match="stop"), staged_folder(tmp_path / "bundle", overwrite=True):
        raise ValueError("stop")
    assert names(tmp_path / "bundle") == ["old"]
    with staged_folder(tmp_path / "bundle", overwrite=True) as stage:
        (stage / "new").write_text("new")
    assert names(tmp_path / "bundle") == ["new"]
    assert names(tmp_path) == ["bundle"]


def test_an_empty_folder_counts_as_free(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with staged_folder(tmp_path / "bundle") as stage:
        (stage / "new").write_text("new")
    assert names(tmp_path / "bundle") == ["new"]


def test_a_file_is_never_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "bundle").write_text("a file")
    with pytest.raises(OutputError, match="is a file"), staged_folder(tmp_path / "bundle", overwrite=True):
        pytest.fail("entered")


def test_an_output_below_a_file_is_one_plain_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for stage in (staged_file, staged_files, staged_folder):
        with pytest.raises(OutputError, match=r"cannot write .*file"), stage(tmp_path / "file" / "x"):  # type: ignore[operator]
            pytest.fail("entered")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No space left"), staged_files(tmp_path / "out") as stage:
        (stage / "one").write_text("1")
        with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123
            os.write(full.fileno(), b"x")
    assert names(tmp_path) == []
