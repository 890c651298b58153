"""What a store makes of bytes that changed, of sizes that can't be, and of what other people put into its folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from samri.errors import InputError, OutputError
from samri_training.store import (
    EmbeddedSlice,
    EmbeddingStore,
    EncoderFacts,
    ShardWriter,
    StoreInfo,
    StorePlan,
    require_encoder,
)
from samri_training.store import _own_files as own_files
from samri_training.store._manifest import read_manifests, write_index
from tests.support.files import contents

SHAPE = (4, 6, 6)
FACTS = EncoderFacts("e" * 32, "samri", 96, SHAPE, "vit_tiny", "fp32", "tiny.pth", "c" * 64)
INFO = StoreInfo.of(FACTS, "fp16", "slices")
NAMES = ["store.json", "index.json", "shard-000000.json", "shard-000000.part", "shard-000000.journal"]


def make_slices(count: int = 3) -> list[EmbeddedSlice]:
    rng = np.random.default_rng(5)
    return [
        EmbeddedSlice(
            *(f"a{index}_img_0", f"a{index}", rng.standard_normal(SHAPE, dtype=np.float32)),
            *(rng.integers(0, 3, (20 + index, 31), dtype=np.uint16), (0.5, 2.0)),
        )
        for index in range(count)
    ]


def write_store(folder: Path, size: int = 2) -> Path:
    slices = make_slices()
    plan = StorePlan.of(INFO, [(item.name, item.case) for item in slices], size)
    plan.begin(folder)
    for shard in plan.shards:
        if (folder / f"{shard.name}.safetensors").exists():
            continue
        with ShardWriter(folder, INFO, shard, 1, "f" * 64) as writer:
            for item in slices[shard.start + writer.done : shard.start + shard.count]:
                writer.append([item])
            writer.seal({"samri": "test"})
    write_index(folder, read_manifests(folder, plan))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_store(tmp_path / "store")


def as_older_samri_wrote(file: Path) -> None:
    """Without checksums, as format 1.0 was."""
    values = json.loads(file.read_text()) | {"format_version": "1.0"}
    for entry in (values, *values.get("shards", [])):
        for key in ("checksum", "tables_sha256", "inputs_sha256"):
            entry.pop(key, None)
    file.write_text(json.dumps(values))


def read_all(folder: Path) -> list[tuple[object, ...]]:
    store = EmbeddingStore.open(folder)
    return [(item.name, item.case, item.spacing, item.shape, item.mask.sum()) for item in store]


def test_every_flipped_byte_behind_the_masks_is_found_when_its_slice_is_read(folder: Path) -> None:
    file = folder / "shard-000000.safetensors"
    good = file.read_bytes()
    length = int.from_bytes(good[:8], "little")
    tables = 8 + length + json.loads(good[8 : 8 + length])["masks"]["data_offsets"][1]
    assert len(good) - tables > 100
    for place in [*range(8, 600, 13), *range(tables, len(good))]:
        file.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(InputError, match=r"shard-000000\.safetensors"):
            read_all(folder)


@pytest.mark.parametrize("name", ["store.json", "index.json"])
def test_every_changed_digit_of_a_description_is_found(folder: Path, name: str) -> None:
    file = folder / name
    good = file.read_bytes()
    digits = [place for place, byte in enumerate(good) if chr(byte).isdigit()]
    for place in digits[:: max(len(digits) // 60, 1)]:
        file.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(InputError, match=name):
            read_all(folder)


def test_a_changed_manifest_is_found_where_there_is_no_index(folder: Path) -> None:
    (folder / "index.json").unlink()
    file = folder / "shard-000001.json"
    file.write_text(file.read_text().replace("f" * 64, "f" * 63 + "e"))
    with pytest.raises(InputError, match=r"shard-000001\.json.*checksum"):
        EmbeddingStore.open(folder)


def test_stores_of_an_earlier_samri_open_and_their_image_size_is_compared_with_the_checkpoint(folder: Path) -> None:
    expected = read_all(folder)
    for file in folder.glob("*.json"):
        as_older_samri_wrote(file)
    assert read_all(folder) == expected
    require_encoder(EmbeddingStore.open(folder), FACTS, "tiny.pth")
    plan = folder / "store.json"
    plan.write_text(plan.read_text().replace('"image_size": 96', '"image_size": 98'))
    with pytest.raises(InputError, match=r"image size is 98, and tiny\.pth has 96"):
        require_encoder(EmbeddingStore.open(folder), FACTS, "tiny.pth")


def test_corrected_masks_make_another_content(folder: Path, tmp_path: Path) -> None:
    same = EmbeddingStore.open(write_store(tmp_path / "same")).content_sha256
    assert EmbeddingStore.open(folder).content_sha256 == same
    assert EmbeddingStore.open(write_store(tmp_path / "other", size=3)).content_sha256 != same


# --- sizes and types that can't be ------------------------------------------------------------------------------------

VALUES = [10**12, 10**30, -1, 0, 1.5, "3", None, True, [], {}, [[1]]]


@pytest.mark.parametrize("name", ["store.json", "index.json", "shard-000000.json"])
def test_no_value_of_a_description_hangs_or_crashes(folder: Path, name: str) -> None:
    """Format 1.0, which has no checksum to catch them."""
    for file in folder.glob("*.json"):
        as_older_samri_wrote(file)
    if name != "index.json":
        (folder / "index.json").unlink()
    values = json.loads((folder / name).read_text())
    expected = read_all(folder)
    for key in values:
        for value in VALUES:
            (folder / name).write_text(json.dumps(values | {key: value}))
            try:
                assert read_all(folder) == expected
            except InputError as error:
                assert "\n" not in str(error)


def test_entries_of_an_index_that_cannot_be_are_refused(folder: Path) -> None:
    file = folder / "index.json"
    as_older_samri_wrote(file)
    values = json.loads(file.read_text())
    for entry in [*VALUES, *(values["shards"][0] | {key: value} for key in values["shards"][0] for value in VALUES)]:
        file.write_text(json.dumps(values | {"shards": [entry, values["shards"][1]]}))
        try:
            read_all(folder)
        except InputError as error:
            assert "\n" not in str(error)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", [*NAMES, "shard-000000.safetensors"])
def test_a_named_pipe_in_a_store_is_never_waited_for(folder: Path, name: str) -> None:
    (folder / "shard-000000.safetensors").unlink()
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    try:
        write_store(folder)
        read_all(folder)
    except (InputError, OutputError) as error:
        assert "\n" not in str(error)


def test_a_damaged_line_of_a_journal_counts_for_nothing(tmp_path: Path) -> None:
    """A flipped bit in a name or a spacing, which no checksum of pixels covers."""
    whole = contents(write_store(tmp_path / "whole", size=3))
    for place in range(-2, -200, -17):
        part = tmp_path / str(place)
        plan = StorePlan.of(INFO, [(item.name, item.case) for item in make_slices()], 3)
        plan.begin(part)
        with ShardWriter(part, INFO, plan.shards[0], 1, "f" * 64) as writer:
            writer.append(make_slices()[:1])
            writer.append(make_slices()[1:2])
        journal = part / "shard-000000.journal"
        held = bytearray(journal.read_bytes())
        held[place] ^= 1
        journal.write_bytes(held)
        assert contents(write_store(part, size=3)) == whole


# --- what others put there --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
@pytest.mark.parametrize("name", [*NAMES, *(f".{name}.new" for name in NAMES[:3])])
def test_no_link_is_followed_when_a_store_is_written(tmp_path: Path, name: str, kind: str) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_text("a colleague's")
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / name).symlink_to(theirs) if kind == "symbolic" else os.link(theirs, folder / name)
    try:
        write_store(folder)
    except (InputError, OutputError) as error:
        assert name in str(error)
    assert theirs.read_text() == "a colleague's"


@pytest.mark.slow
def test_a_killed_rename_anywhere_is_made_up_for(tmp_path: Path) -> None:
    """The process ends, without any handler, at its n-th rename or removal; the next one makes the same bytes."""
    whole = contents(write_store(tmp_path / "whole"))
    script = """
        import os, sys
        sys.path[:0] = {path!r}
        import test_store_integrity as t
        left = int(sys.argv[2])
        def watch(event, arguments):
            global left
            if event in ("os.rename", "os.remove"):
                left -= 1
                if left < 0:
                    os._exit(9)
        sys.addaudithook(watch)
        t.write_store(t.Path(sys.argv[1]))
    """
    code = textwrap.dedent(script.format(path=[str(Path(__file__).parent), *sys.path]))
    processes = []
    for number in range(9):  # store.json; twice manifest, shard and journal; index.json: eight in all.
        folder = tmp_path / str(number)
        processes.append((folder, subprocess.Popen([sys.executable, "-c", code, str(folder), str(number)])))
    codes = [process.wait() for _, process in processes]
    assert codes == [9] * 8 + [0]
    for folder, _ in processes:
        write_store(folder)
        left = contents(folder)
        left.pop("shard-000000.journal", None), left.pop("shard-000001.journal", None)
        assert left == whole


def test_two_writers_of_one_small_file_wait_for_each_other(tmp_path: Path) -> None:
    held = own_files.lock_own(tmp_path / ".index.json.new")
    assert held is not None
    assert own_files.lock_own(tmp_path / ".index.json.new") is None
    held.close()
    own_files.write_text(tmp_path / "index.json", "{}\n")
    assert contents(tmp_path) == {"index.json": b"{}\n"}
