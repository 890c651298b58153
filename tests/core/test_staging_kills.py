"""A process that dies between any two steps of a write: old or new at that moment, and nothing left after the next."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from samri import staging
from samri.staging import staged_file, staged_files, staged_folder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

STEPS = ("rename", "replace", "unlink", "rmdir", "mkdir")
DIED, DONE = 77, 0
OLD, NEW = {"one": "old 1", "two": "old 2", "zz": "old z"}, {"one": "new 1", "three": "new 3", "zz": "new z"}


def texts(folder: Path) -> dict[str, str]:
    """What a reader sees: the files that aren't hidden."""
    return {path.name: path.read_text() for path in folder.iterdir() if not path.name.startswith(".")}


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def dies_after(step: int, act: Callable[[], None]) -> bool:
    """Whether `act`, in a process of its own, reached its step number `step`, right after which it dies."""
    child = os.fork()
    if child == 0:
        count = iter(range(10_000))

        def deadly(real: Callable[..., object]) -> Callable[..., object]:
            def call(*args: object, **extra: object) -> object:
                fatal = next(count) == step
                try:
                    return real(*args, **extra)
                finally:
                    if fatal:
                        os._exit(DIED)

            return call

        try:
            for name in STEPS:
                setattr(os, name, deadly(getattr(os, name)))
            for name in STEPS if sys.version_info < (3, 11) else ():  # There, pathlib keeps functions of its own.
                setattr(Path, name, deadly(getattr(Path, name)))
            staging.exchange = deadly(staging.exchange)  # type: ignore[attr-defined]
            act()
        except BaseException:
            os._exit(1)
        os._exit(DONE)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (DIED, DONE)
    return code == DIED


def write_one(folder: Path) -> None:
    with staged_file(folder / "one") as stage:
        stage.write_text(NEW["one"])


def write_all(folder: Path) -> None:
    with staged_files(folder, obsolete=["two"], last="zz") as stage:
        for name, text in NEW.items():
            (stage / name).write_text(text)


def write_folder(folder: Path) -> None:
    with staged_folder(folder / "bundle", overwrite=True) as stage:
        for name, text in NEW.items():
            (stage / name).write_text(text)


def filled(folder: Path, content: dict[str, str]) -> Path:
    folder.mkdir()
    for name, text in content.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.slow
def test_a_file_is_the_old_or_the_new_one_whenever_the_writer_dies(tmp_path: Path) -> None:
    for step in range(1000):
        folder = filled(tmp_path / str(step), OLD)
        died = dies_after(step, lambda folder=folder: write_one(folder))  # type: ignore[misc]
        assert texts(folder) in (OLD, {**OLD, "one": NEW["one"]})
        write_one(folder)
        assert hidden(folder) == []
        if not died:
            assert step > 4
            return


@pytest.mark.slow
def test_files_are_all_old_or_all_new_once_the_next_writer_starts(tmp_path: Path) -> None:
    seen = set()
    for step in range(1000):
        folder = filled(tmp_path / str(step), OLD)
        died = dies_after(step, lambda folder=folder: write_all(folder))  # type: ignore[misc]
        # The last file vouches for the others: it never stands beside those of another writer.
        found = texts(folder)
        if found.get("zz") == OLD["zz"]:
            assert found == OLD
        elif "zz" in found:
            assert found == NEW
        # Another writer, of another file, repairs what this one left.
        with staged_file(folder / "other") as stage:
            stage.write_text("other")
        assert hidden(folder) == []
        seen.add(json.dumps(texts(folder), sort_keys=True))
        if not died:
            break
    others = ({**OLD, "other": "other"}, {**NEW, "other": "other"})
    assert seen == {json.dumps(content, sort_keys=True) for content in others}


@pytest.mark.slow
@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_the_old_or_the_new_one_whenever_the_writer_dies(
    tmp_path: Path, exchanges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchanges:
        monkeypatch.setattr(staging, "exchange", lambda one, other: False)
    for step in range(1000):
        folder = tmp_path / str(step)
        folder.mkdir()
        filled(folder / "bundle", OLD)
        died = dies_after(step, lambda folder=folder: write_folder(folder))  # type: ignore[misc]
        if exchanges and sys.platform == "linux":
            assert texts(folder / "bundle") in (OLD, NEW)
        with staged_folder(folder / "another") as stage:
            (stage / "x").write_text("")
        assert texts(folder / "bundle") in (OLD, NEW)
        assert hidden(folder) == []
        if not died:
            assert step > 4
            return


def test_a_signal_between_any_two_steps_leaves_old_or_new_at_once(tmp_path: Path) -> None:
    class StopError(BaseException):
        pass

    rename = Path.replace

    for step in range(100):
        folder = filled(tmp_path / str(step), OLD)

        def stopped(source: Path, target: Path, left: list[int] = [step]) -> Path:  # noqa: B006
            answer = rename(source, target)
            left[0] -= 1
            if left[0] == -1:
                raise StopError
            return answer

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "replace", stopped)
            try:
                write_all(folder)
            except StopError:
                assert texts(folder) in (OLD, NEW)
                assert hidden(folder) == []
            else:
                assert step == 6  # Three old files aside, three new ones in place.
                return


def test_what_a_living_writer_works_on_is_left_alone(tmp_path: Path) -> None:
    waits = "import sys, time; from samri.staging import staged_files\n"
    waits += "with staged_files(sys.argv[1]) as stage:\n (stage / 'one').write_text('1'); print(flush=True)\n"
    waits += " time.sleep(60)\n"
    with subprocess.Popen([sys.executable, "-c", waits, tmp_path], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        (left,) = hidden(tmp_path)
        write_one(tmp_path)
        assert hidden(tmp_path) == [left]
        other.send_signal(signal.SIGKILL)
        other.wait()
        write_one(tmp_path)
        assert hidden(tmp_path) == []


def test_a_stage_of_this_very_process_is_left_alone(tmp_path: Path) -> None:
    with staged_files(tmp_path) as stage:
        (stage / "two").write_text("2")
        write_one(tmp_path)
    assert texts(tmp_path) == {"one": NEW["one"], "two": "2"}


def test_hidden_folders_of_others_stay_however_old_they_are(tmp_path: Path) -> None:
    kept = [".samri-stage.mine", ".samri-stage.notes.abcdefgh", ".bundle.abcdefgh", ".git"]
    for name in kept:
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "lock").write_text("")
    (tmp_path / ".samri-stage.link.abcdefgh").symlink_to(tmp_path / "elsewhere")
    old = time.time() - 1e7
    for name in kept:
        os.utime(tmp_path / name, (old, old))
    write_one(tmp_path)
    assert sorted(hidden(tmp_path)) == sorted([*kept, ".samri-stage.link.abcdefgh"])
    assert (tmp_path / "elsewhere" / "lock").exists()


@pytest.mark.slow
def test_a_file_that_a_person_put_there_after_the_kill_is_not_undone(tmp_path: Path) -> None:
    folder = filled(tmp_path / "out", OLD)
    for step in range(1000):
        assert dies_after(step, lambda: write_all(folder))
        if "three" in texts(folder) and "zz" not in texts(folder):
            break
        write_one(folder)
        for name, text in OLD.items():
            (folder / name).write_text(text)
    (folder / "three").write_text("by hand")
    (folder / "two").write_text("by hand too")
    with staged_file(folder / "other") as stage:
        stage.write_text("other")
    assert texts(folder) == {**OLD, "two": "by hand too", "three": "by hand", "other": "other"}
    assert hidden(folder) == []


def test_a_device_is_no_place_for_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"), staged_file(tmp_path / "pipe"):
        pytest.fail("entered")
