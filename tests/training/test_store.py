from __future__ import annotations

import dataclasses
import json
import pickle
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import load_file

from samri.errors import InputError
from samri_training.store import (
    EmbeddedSlice,
    EmbeddingStore,
    EncoderFacts,
    ShardWriter,
    StoredDtype,
    StoreInfo,
    StorePlan,
    combine,
    require_encoder,
)
from samri_training.store._manifest import read_manifests, write_index
from samri_training.store._shard_file import pack_mask, unpack_mask

SHAPE = (4, 6, 6)
FACTS = EncoderFacts("e" * 32, "samri", 96, SHAPE, "vit_tiny", "fp32", "tiny.pth", "c" * 64)


def make_slices(count: int) -> list[EmbeddedSlice]:
    rng = np.random.default_rng(5)
    slices = []
    for index in range(count):
        mask = rng.integers(0, 3 if index % 4 else 700, (20 + index, 31), dtype=np.uint16)
        features = rng.standard_normal(SHAPE, dtype=np.float32)
        slices.append(EmbeddedSlice(f"é{index // 3}_img_{index}", f"é{index // 3}", features, mask, (0.5 + index, 2.0)))
    return slices


def write_store(
    folder: Path,
    slices: list[EmbeddedSlice],
    *,
    dtype: StoredDtype = "fp16",
    facts: EncoderFacts = FACTS,
    size: int = 3,
) -> Path:
    info = StoreInfo.of(facts, dtype, "slices")
    plan = StorePlan.of(info, [(item.name, item.case) for item in slices], size)
    plan.begin(folder)
    for shard in plan.shards:
        with ShardWriter(folder, info, shard, 2) as writer:
            for first in range(writer.done, shard.count, 2):
                writer.append(slices[shard.start : shard.start + shard.count][first : first + 2])
            writer.seal({"samri": "test"})
    write_index(folder, read_manifests(folder, plan))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_store(tmp_path / "store", make_slices(8))


def refuses(folder: Path, *words: str, read: bool = False) -> None:
    with pytest.raises(InputError) as caught:
        store = EmbeddingStore.open(folder)
        if read:
            for _ in store:
                pass
        else:
            list(store.verify())
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_a_store_gives_back_what_was_written(tmp_path: Path, dtype: StoredDtype) -> None:
    slices = make_slices(8)
    store = EmbeddingStore.open(write_store(tmp_path / "store", slices, dtype=dtype))
    assert len(store) == 8
    kind = np.float16 if dtype == "fp16" else np.float32
    for read, written in zip(store, slices, strict=True):
        assert (read.name, read.case, read.spacing) == (written.name, written.case, written.spacing)
        assert read.shape == written.mask.shape
        assert read.features.dtype == kind
        np.testing.assert_array_equal(read.features, written.features.astype(kind))
        np.testing.assert_array_equal(read.mask, written.mask)
        assert read.mask.dtype == (np.uint16 if written.mask.max() > 255 else np.uint8)
        assert not read.features.flags.writeable
    assert list(store.names()) == [(item.name, item.case) for item in slices]


def test_shards_are_ordinary_safetensors_files(folder: Path) -> None:
    slices = make_slices(8)
    tensors = load_file(folder / "shard-000001.safetensors")
    np.testing.assert_array_equal(tensors["features"][2], slices[5].features.astype(np.float16))
    assert json.loads(tensors["names"].tobytes())[0] == [slices[3].name, slices[3].case]
    packed = tensors["masks"][: tensors["mask_ends"][0]].tobytes()
    np.testing.assert_array_equal(np.frombuffer(zlib.decompress(packed), np.uint8), slices[3].mask.ravel())


def test_embeddings_begin_at_a_page(folder: Path) -> None:
    (length,) = struct.unpack("<Q", (folder / "shard-000000.safetensors").read_bytes()[:8])
    assert length + 8 == 4096


def test_slices_count_from_the_end_too_and_end_somewhere(folder: Path) -> None:
    store = EmbeddingStore.open(folder)
    assert store[-1].name == store[7].name
    for index in (8, -9):
        with pytest.raises(IndexError):
            store[index]


def test_the_info_says_which_encoder_made_it(folder: Path) -> None:
    info = EmbeddingStore.open(folder).info
    assert (info.embedding_id, info.profile, info.image_size, info.embedding_shape) == ("e" * 32, "samri", 96, SHAPE)
    assert (info.dtype, info.checkpoint, info.checkpoint_sha256, info.source) == (
        "fp16",
        "tiny.pth",
        "c" * 64,
        "slices",
    )


def test_a_store_travels_to_worker_processes(folder: Path) -> None:
    store = EmbeddingStore.open(folder)
    copy = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(copy[4].features, store[4].features)


def test_arrays_outlive_the_store(folder: Path) -> None:
    store = EmbeddingStore.open(folder)
    read = store[0]
    expected = make_slices(1)[0].features.astype(np.float16)
    store.close()
    del store
    np.testing.assert_array_equal(read.features, expected)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files as Linux lists them")
def test_only_a_few_files_are_open_at_once(tmp_path: Path) -> None:
    store = EmbeddingStore.open(write_store(tmp_path / "store", make_slices(90), size=1))
    opened = Path("/proc/self/fd")
    before = len(list(opened.iterdir()))
    for item in store:
        assert item.features.shape == SHAPE
    assert len(list(opened.iterdir())) - before <= 64


@given(arrays.arrays(st.sampled_from([np.uint8, np.uint16]), arrays.array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_masks_survive_packing(mask: np.ndarray) -> None:
    packed, itemsize = pack_mask(mask)
    np.testing.assert_array_equal(unpack_mask(packed, mask.shape, itemsize), mask)


def test_a_mask_of_another_size_is_not_unpacked() -> None:
    packed, itemsize = pack_mask(np.zeros((300, 300), np.uint8))
    for shape in ((300, 299), (300, 301)):
        with pytest.raises(ValueError, match="pixels"):
            unpack_mask(packed, shape, itemsize)


# --- damage -----------------------------------------------------------------------------------------------------------


def test_one_changed_bit_of_an_embedding_is_found_when_it_is_read(folder: Path) -> None:
    file = folder / "shard-000001.safetensors"
    content = bytearray(file.read_bytes())
    content[4096 + 17] ^= 4
    file.write_bytes(content)
    refuses(folder, "shard-000001.safetensors", "checksum", "samri-embed", read=True)
    refuses(folder, "shard-000001.safetensors", "SHA-256")


def test_every_byte_of_a_shard_is_guarded(folder: Path) -> None:
    file = folder / "shard-000002.safetensors"
    good = file.read_bytes()
    places = [0, 9, 60, *range(4096, len(good), 37), len(good) - 1]
    for place in places:
        file.write_bytes(good[:place] + bytes([good[place] ^ 0xFF]) + good[place + 1 :])
        refuses(folder, "shard-000002.safetensors")


def test_any_damage_to_a_shard_ends_in_a_plain_line_or_the_right_slices(folder: Path) -> None:
    """Without hashing: reading alone never crashes, never reads out of bounds, never gives wrong embeddings."""
    file = folder / "shard-000002.safetensors"
    good = file.read_bytes()
    expected = make_slices(8)
    rng = np.random.default_rng(0)
    end = len(good)
    for place in [*range(0, 700, 7), *range(end - 300, end), *rng.integers(4096, end, 40)]:
        file.write_bytes(good[:place] + bytes([good[place] ^ 0x21]) + good[place + 1 :])
        store = EmbeddingStore.open(folder)
        for index in (6, 7):
            try:
                read = store[index]
            except InputError as error:
                assert "shard-000002" in str(error)
            else:
                np.testing.assert_array_equal(read.features, expected[index].features.astype(np.float16))


@pytest.mark.parametrize("kept", [0, 5, 4096, -1])
def test_a_shard_that_was_cut_off_is_named(folder: Path, kept: int) -> None:
    file = folder / "shard-000000.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    refuses(folder, "shard-000000.safetensors", "bytes")


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "shard-000001.safetensors").unlink()
    refuses(folder, "shard-000001.safetensors", "missing")


def test_an_unfinished_store_says_what_is_missing(folder: Path) -> None:
    (folder / "index.json").unlink()
    (folder / "shard-000001.safetensors").unlink()
    refuses(folder, "1 of its 3 shards", "shard-000001", "samri-embed again")


def test_the_index_follows_from_the_manifests(folder: Path) -> None:
    with_index = [item.name for item in EmbeddingStore.open(folder)]
    (folder / "index.json").unlink()
    assert [item.name for item in EmbeddingStore.open(folder)] == with_index


def test_a_shard_of_another_encoder_is_refused(folder: Path, tmp_path: Path) -> None:
    facts = dataclasses.replace(FACTS, embedding_id="f" * 32, checkpoint="other.pth")
    other = write_store(tmp_path / "other", make_slices(8), facts=facts)
    for ending in ("safetensors", "json"):
        (other / f"shard-000001.{ending}").replace(folder / f"shard-000001.{ending}")
    refuses(folder, "shard-000001", "another encoder", read=True)
    (folder / "index.json").unlink()
    refuses(folder, "shard-000001", "another encoder")


@pytest.mark.parametrize("name", ["store.json", "index.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format": 3}', b"[" * 100_000])
def test_a_damaged_description_is_named(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    refuses(folder, name)


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("format", "other", "isn't a part of a store"),
        ("format_version", "2.0", "pip install -U samri"),
        ("profile", "new", "this samri knows sam"),
        ("dtype", "fp8", "fp16, fp32"),
        ("embedding_shape", [4, 6], "three sizes"),
        ("slices", 0, "no slices"),
        ("slices_per_shard", True, "slices_per_shard"),
    ],
)
def test_a_description_that_cannot_be_is_named(folder: Path, key: str, value: object, word: str) -> None:
    file = folder / "store.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    refuses(folder, "store.json", word)


def test_what_is_no_store_is_named(folder: Path, tmp_path: Path) -> None:
    refuses(tmp_path / "nowhere", "no such folder")
    (tmp_path / "empty").mkdir()
    refuses(tmp_path / "empty", "store.json")
    refuses(tmp_path, "holds the stores store")


# --- mixing -----------------------------------------------------------------------------------------------------------


def test_stores_of_one_encoder_read_as_one(tmp_path: Path) -> None:
    slices = make_slices(8)
    parts = [
        EmbeddingStore.open(write_store(tmp_path / "a", slices[:5])),
        EmbeddingStore.open(write_store(tmp_path / "b", slices[5:], dtype="fp32")),
    ]
    both = combine(parts)
    assert [both[index].name for index in range(len(both))] == [item.name for item in slices]
    assert both[-8].name == slices[0].name
    with pytest.raises(IndexError):
        both[8]


@pytest.fixture
def other(tmp_path: Path) -> Iterator[EmbeddingStore]:
    facts = dataclasses.replace(FACTS, embedding_id="f" * 32, checkpoint="other.pth", profile="sam")
    yield EmbeddingStore.open(write_store(tmp_path / "other", make_slices(2), facts=facts))


def test_stores_of_two_encoders_are_not_mixed(folder: Path, other: EmbeddingStore) -> None:
    with pytest.raises(InputError, match=r"other.pth, profile sam.*tiny.pth"):
        combine([EmbeddingStore.open(folder), other])
    with pytest.raises(InputError, match=r"other.* use its own checkpoint"):
        require_encoder(other, FACTS, "tiny.pth")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"info": StoreInfo.of(dataclasses.replace(FACTS, embedding_id="f" * 32), "fp16", "slices")}, "can't be mixed"),
        ({"info": StoreInfo.of(FACTS, "fp32", "slices")}, "--store-dtype"),
        ({"slices": 9}, "9"),
        ({"slices_sha256": "0" * 64}, "other names"),
        ({"slices_per_shard": 4}, "--shard-size 3"),
    ],
)
def test_a_store_goes_on_only_as_it_was_begun(folder: Path, change: dict[str, object], word: str) -> None:
    plan = dataclasses.replace(StorePlan.read(folder), **change)  # type: ignore[arg-type]
    with pytest.raises(InputError) as caught:
        plan.begin(folder)
    assert word in str(caught.value)
    assert str(folder) in str(caught.value)
