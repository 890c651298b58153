from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from samri.errors import InputError, OutputError
from samri_training.store import EmbeddedSlice, EncoderFacts, ShardWriter, StoreInfo, StorePlan
from samri_training.store import _shard_writer as module
from samri_training.store._plan import Shard
from tests.support.files import contents

SHAPE = (4, 6, 6)
FACTS = EncoderFacts("e" * 32, "samri", 96, SHAPE, "vit_tiny", "fp32", "tiny.pth", "c" * 64)
INFO = StoreInfo.of(FACTS, "fp16", "slices")
COUNT, BATCH = 5, 2


class Killed(BaseException):
    """Stands for SIGKILL: nothing but closing of files happens after it."""


def make_slices() -> list[EmbeddedSlice]:
    rng = np.random.default_rng(5)
    return [
        EmbeddedSlice(
            f"a_img_{index}",
            "a",
            rng.standard_normal(SHAPE, dtype=np.float32),
            rng.integers(0, 3, (20 + index, 31), dtype=np.uint16),
            (0.5, 2.0),
        )
        for index in range(COUNT)
    ]


def write_shard(folder: Path, batch: int = BATCH) -> int:
    """Write the shard or the rest of it; returns how many slices were there before."""
    slices = make_slices()
    with ShardWriter(folder, INFO, Shard(0, 0, COUNT), batch) as writer:
        before = writer.done
        for first in range(before, COUNT, batch):
            writer.append(slices[first : first + batch])
        writer.seal({"samri": "test"})
    return before


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    folder = tmp_path / "whole"
    folder.mkdir()
    write_shard(folder)
    return contents(folder)


def killed_at_line(number: int, action: Callable[[], object]) -> bool:
    """Run `action` and kill it at the n-th line of the writer's module that it reaches; whether it got that far."""
    seen = 0

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal seen
        if frame.f_code.co_filename != module.__file__ or frame.f_code.co_name in ("__exit__", "_close"):
            return None
        if event == "line":
            seen += 1
            if seen == number:
                raise Killed
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    except Killed:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.slow
# A process that is killed closes nothing, and neither does one that is killed between two lines here.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_shard_killed_at_any_line_goes_on_to_the_same_bytes(tmp_path: Path, whole: dict[str, bytes]) -> None:
    number, resumed = 1, set()
    while True:
        folder = tmp_path / str(number)
        folder.mkdir()
        if not killed_at_line(number, lambda folder=folder: write_shard(folder)):  # type: ignore[misc]
            break
        if "shard-000000.safetensors" not in contents(folder):
            resumed.add(write_shard(folder))
        for name, written in whole.items():
            assert contents(folder)[name] == written, f"killed at line event {number}"
        # A kill between the shard's last name and the journal's end may leave the journal, which the next run removes.
        assert contents(folder).keys() - whole.keys() <= {"shard-000000.journal"}
        number += 1
    assert number > 100
    assert resumed == {0, 2, 4, 5}


# A process that is killed closes nothing, and neither does one that is killed between two lines here.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_shard_killed_twice_goes_on_to_the_same_bytes(tmp_path: Path, whole: dict[str, bytes]) -> None:
    for first in range(40, 200, 23):
        folder = tmp_path / str(first)
        folder.mkdir()
        killed_at_line(first, lambda folder=folder: write_shard(folder))  # type: ignore[misc]
        killed_at_line(first // 2, lambda folder=folder: write_shard(folder))  # type: ignore[misc]
        write_shard(folder)
        assert contents(folder) == whole


def interrupted(folder: Path, done: int) -> None:
    folder.mkdir()
    slices = make_slices()
    with ShardWriter(folder, INFO, Shard(0, 0, COUNT), BATCH) as writer:
        for first in range(0, done, BATCH):
            writer.append(slices[first : first + BATCH])


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_a_torn_journal_costs_one_batch(tmp_path: Path, whole: dict[str, bytes], cut: int) -> None:
    interrupted(tmp_path / "torn", 4)
    journal = tmp_path / "torn" / "shard-000000.journal"
    journal.write_bytes(journal.read_bytes()[:-cut])
    assert write_shard(tmp_path / "torn") == 2
    assert contents(tmp_path / "torn") == whole


def test_what_the_journal_claims_and_the_disk_lost_is_embedded_again(tmp_path: Path, whole: dict[str, bytes]) -> None:
    """As after a power failure, which may lose data that was written before a line of the journal that it keeps."""
    interrupted(tmp_path / "lost", 4)
    part = tmp_path / "lost" / "shard-000000.part"
    held = bytearray(part.read_bytes())
    held[4096 + 2 * INFO.bytes_per_slice : 4096 + 3 * INFO.bytes_per_slice] = bytes(INFO.bytes_per_slice)
    part.write_bytes(held)
    assert write_shard(tmp_path / "lost") == 2
    assert contents(tmp_path / "lost") == whole


@pytest.mark.parametrize("line", [b"{}\n", b"[]\n", b"[1]\n", b'[{"name": 1}]\n', b"nonsense\n", b"\xff\n"])
def test_a_journal_of_nonsense_is_begun_anew(tmp_path: Path, whole: dict[str, bytes], line: bytes) -> None:
    interrupted(tmp_path / "bad", 4)
    journal = tmp_path / "bad" / "shard-000000.journal"
    head = journal.read_bytes().splitlines(keepends=True)[0]
    journal.write_bytes(head + line)
    assert write_shard(tmp_path / "bad") == 0
    assert contents(tmp_path / "bad") == whole


def test_another_batch_size_begins_the_shard_anew(tmp_path: Path, whole: dict[str, bytes]) -> None:
    interrupted(tmp_path / "batch", 4)
    assert write_shard(tmp_path / "batch", batch=1) == 0
    assert contents(tmp_path / "batch")["shard-000000.safetensors"] == whole["shard-000000.safetensors"]


def test_two_writers_of_one_shard_do_not_meet(tmp_path: Path) -> None:
    with (
        ShardWriter(tmp_path, INFO, Shard(0, 0, COUNT), BATCH),
        pytest.raises(OutputError, match=r"shard-000000.part is being written by another samri-embed"),
    ):
        ShardWriter(tmp_path, INFO, Shard(0, 0, COUNT), BATCH)


def test_a_killed_writer_leaves_no_lock(tmp_path: Path, whole: dict[str, bytes]) -> None:
    script = f"""
        import os, signal, sys
        sys.path[:0] = {sys.path!r}
        import test_store_writing as t
        with t.ShardWriter(t.Path({str(tmp_path / "dead")!r}), t.INFO, t.Shard(0, 0, t.COUNT), t.BATCH) as writer:
            writer.append(t.make_slices()[:2])
            os.kill(os.getpid(), signal.SIGKILL)
    """
    (tmp_path / "dead").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert write_shard(tmp_path / "dead") == 2
    assert contents(tmp_path / "dead") == whole


def test_a_full_disk_is_one_plain_line_and_loses_nothing(tmp_path: Path, whole: dict[str, bytes]) -> None:
    folder = tmp_path / "full"
    folder.mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Room for the header and three embeddings and a half: the disk is full within the second batch.
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096 + 7 * INFO.bytes_per_slice // 2, hard))
    try:
        with pytest.raises(OutputError) as caught:
            write_shard(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "shard-000000.part: File too large" in str(caught.value)
    assert "run samri-embed again" in str(caught.value)
    write_shard(folder)
    assert contents(folder) == whole


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        ShardWriter(tmp_path / "file", INFO, Shard(0, 0, COUNT), BATCH)


def test_an_embedding_too_large_for_half_precision_is_refused_by_name(tmp_path: Path) -> None:
    large = make_slices()[1]
    large.features[0, 0, 0] = 1e5
    with (
        ShardWriter(tmp_path, INFO, Shard(0, 0, COUNT), BATCH) as writer,
        pytest.raises(InputError, match=r"a_img_1 holds NaN or infinite values as fp16.*--store-dtype fp32"),
    ):
        writer.append([large])


def test_shards_hold_sixteen_to_256_slices_by_default() -> None:
    def sizes(count: int) -> list[int]:
        plan = StorePlan.of(INFO, [(str(index), "") for index in range(count)])
        shards = plan.shards
        assert sum(shard.count for shard in shards) == count
        assert [shard.start for shard in shards] == list(np.cumsum([0] + [shard.count for shard in shards])[:-1])
        return [shard.count for shard in shards]

    assert sizes(1) == [1]
    assert sizes(40) == [16, 16, 8]
    assert len(sizes(6400)) == 64
    assert max(sizes(40_000)) == 256
