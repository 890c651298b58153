from __future__ import annotations

import os
from pathlib import Path
from typing import Any

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


def test_a_folder_in_the_way_of_one_file_leaves_all_others_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("old")
    (tmp_path / "two").mkdir()
    with pytest.raises(OutputError, match="two: it is a folder"), staged_files(tmp_path) as stage:
        (stage / "one").write_text("1")
        (stage / "two").write_text("2")
    assert names(tmp_path) == ["one", "two"]
    assert (tmp_path / "one").read_text() == "old"


@pytest.mark.parametrize("failing", range(5))
def test_files_that_were_replaced_already_are_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Whichever rename fails: one is aside, one in place, two aside, two in place, stale aside."""
    for name in ("one", "stale", "two"):
        (tmp_path / name).write_text("old")
    rename, calls = Path.replace, iter(range(99))

    def failing_once(source: Path, target: Path) -> Path:
        if next(calls) == failing:
            raise OSError(5, "Input/output error")
        return rename(source, target)

    with pytest.raises(OutputError), staged_files(tmp_path, obsolete=["stale"]) as stage:
        for name in ("one", "two"):
            (stage / name).write_text("new")
        monkeypatch.setattr(Path, "replace", failing_once)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(("one", "stale", "two"), "old")


def test_obsolete_files_go_when_the_new_ones_are_there(tmp_path: Path) -> None:
    for name in ("one", "stale", "kept"):
        (tmp_path / name).write_text("old")
    (tmp_path / "folder").mkdir()
    with staged_files(tmp_path, obsolete=["stale", "one", "never there", "folder"]) as stage:
        (stage / "one").write_text("new")
    assert names(tmp_path) == ["folder", "kept", "one"]
    assert (tmp_path / "one").read_text() == "new"


@pytest.mark.parametrize("stage", [staged_file, staged_files, staged_folder])
def test_a_failure_removes_every_folder_it_made(tmp_path: Path, stage: Any) -> None:
    with pytest.raises(KeyboardInterrupt), stage(tmp_path / "a" / "b" / "c"):
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for overwrite, text in ((False, "1"), (True, "2")):
        with staged_folder(tmp_path / "link", overwrite=overwrite) as stage:
            (stage / "graph").write_text(text)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "real" / "graph").read_text() == text
    assert names(tmp_path) == ["link", "real"]


def test_a_link_that_leads_nowhere_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(OutputError, match="is a broken link"), staged_folder(tmp_path / "link"):
        pytest.fail("entered")
    with pytest.raises(OutputError, match="cannot write"), staged_files(tmp_path / "link"):
        pytest.fail("entered")
    assert names(tmp_path) == ["link"]
