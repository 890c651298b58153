"""The embedding cache on disk: what is kept, for whom, how much, and what becomes of damage."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
import tempfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from samri.errors import InputError, OutputError
from samri_runtime import Embedding
from samri_runtime.cache import EmbeddingCache, arithmetic_of, embedding_key
from tests.support.examples import examples

SHAPE = (1, 4, 3, 3)
ID = "0123456789abcdef" * 2
posix = pytest.mark.skipif(os.name != "posix", reason="permissions as POSIX has them")
root = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give files away")


def features(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


def key_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def keep(cache: EmbeddingCache, number: int, values: np.ndarray | None = None) -> tuple[str, ...]:
    values = features(number) if values is None else values
    return cache.keep(key_of(number), Embedding(values, (5, 7), ID, provenance={"provider": "cpu"})).notes


def find(cache: EmbeddingCache, number: int) -> tuple[np.ndarray | None, tuple[str, ...]]:
    found, notes = cache.find(key_of(number), ID, SHAPE)
    return (None if found is None else found.features), notes


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def cache(tmp_path: Path) -> EmbeddingCache:
    return EmbeddingCache(tmp_path / "cache")


def test_what_was_kept_is_found_bit_for_bit(cache: EmbeddingCache) -> None:
    assert find(cache, 1) == (None, ())
    assert keep(cache, 1) == ()
    values, notes = find(cache, 1)
    assert values is not None
    assert values.dtype == np.float32
    assert values.tobytes() == features(1).tobytes()
    assert notes == ()
    found, _ = cache.find(key_of(1), ID, SHAPE)
    assert found is not None and (found.provenance, found.shape, found.cached) == ({"provider": "cpu"}, (5, 7), True)
    assert find(cache, 2) == (None, ())


def test_half_precision_gives_the_same_rounded_numbers_at_once_and_later(tmp_path: Path) -> None:
    half = EmbeddingCache(tmp_path, precision="fp16")
    rounded = features(1).astype(np.float16).astype(np.float32)
    kept = half.keep(key_of(1), Embedding(features(1), (5, 7), ID))
    np.testing.assert_array_equal(kept.features, rounded)
    np.testing.assert_array_equal(find(half, 1)[0], rounded)
    half_bytes = files(tmp_path)[0].stat().st_size
    full = EmbeddingCache(tmp_path)
    assert find(full, 1) == (None, ()), "an entry in half precision is not what a cache of fp32 promises"
    keep(full, 1)
    assert files(tmp_path)[0].stat().st_size > half_bytes
    np.testing.assert_array_equal(find(half, 1)[0], rounded)


def test_what_half_precision_cannot_hold_is_kept_as_it_is_and_nothing_infinite_is_kept(tmp_path: Path) -> None:
    half = EmbeddingCache(tmp_path, precision="fp16")
    large = features() * np.float32(1e6)
    assert keep(half, 1, large) == ()
    np.testing.assert_array_equal(find(EmbeddingCache(tmp_path), 1)[0], large)
    for bad in (np.nan, np.inf, -np.inf):
        values = features()
        values[0, 1, 2, 0] = bad
        (note,) = keep(half, 2, values)
        assert "not kept" in note
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_other_programs_read_an_entry_and_a_saved_embedding_as_safetensors(tmp_path: Path, precision) -> None:
    cache = EmbeddingCache(tmp_path / "cache", precision=precision)
    keep(cache, 1)
    Embedding(features(1), (5, 7), ID).save(tmp_path / "saved.safetensors", precision)
    for path in (cache.path_of(key_of(1)), tmp_path / "saved.safetensors"):
        with safe_open(path, "numpy") as opened:
            tensor, facts = opened.get_tensor("image_embeddings"), opened.metadata()
            digest = opened.get_tensor("sha256").tobytes()
        assert tensor.dtype == {"fp32": np.float32, "fp16": np.float16}[precision]
        np.testing.assert_array_equal(tensor, features(1).astype(tensor.dtype))
        assert (facts["format"], facts["format_version"], facts["embedding_id"]) == ("samri-embedding", "1.0", ID)
        assert (facts["height"], facts["width"]) == ("5", "7")
        assert hashlib.sha256(path.read_bytes()[:-32]).digest() == digest


def test_a_file_has_the_same_bytes_whatever_the_machines_byte_order(tmp_path: Path) -> None:
    values = np.arange(36, dtype=np.float32).reshape(SHAPE) / 7
    for name, stored in (("little", values.astype("<f4")), ("big", values.astype(">f4"))):
        Embedding(stored, (5, 7), ID).save(tmp_path / name)
    assert (tmp_path / "little").read_bytes() == (tmp_path / "big").read_bytes()
    data = (tmp_path / "big").read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    begin, end = json.loads(data[8 : 8 + length])["image_embeddings"]["data_offsets"]
    assert struct.unpack("<36f", data[8 + length + begin : 8 + length + end]) == tuple(values.ravel().tolist())
    loaded = Embedding.load(tmp_path / "big")
    np.testing.assert_array_equal(loaded.features, values)
    assert (loaded.shape, loaded.embedding_id) == ((5, 7), ID)


def test_a_key_is_the_same_on_every_machine_and_in_every_memory_layout() -> None:
    image = np.arange(12, dtype=np.int16).reshape(3, 4)
    # Computed by hand from the description in docs/cache.md.
    line = (
        f'{{"arithmetic":"","dtype":"i2","embedding_id":"{ID}","format":"samri-embedding-key 1",'
        '"intensity_range":null,"shape":[3,4]}\n'
    )
    expected = hashlib.sha256(line.encode() + struct.pack("<12h", *range(12))).hexdigest()
    strided = np.zeros((6, 4), np.int16)[::2]
    strided[:] = image
    for layout in (image, np.asfortranarray(image), image.astype(">i2"), strided, image[::-1][::-1]):
        assert embedding_key(layout, None, ID) == expected


def test_a_key_changes_with_everything_that_changes_the_numbers() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    other = image.copy()
    other[2, 3] += 1
    keys = [
        embedding_key(image, None, ID),
        embedding_key(other, None, ID),
        embedding_key(image.reshape(4, 3), None, ID),
        embedding_key(image.astype(np.int16), None, ID),
        embedding_key(image.astype(np.int8), None, ID),
        embedding_key(image, (0, 11), ID),
        embedding_key(image, (0, 11 + 1e-12), ID),
        embedding_key(image, None, ID[::-1]),
        embedding_key(image, None, ID, "coarse"),
    ]
    assert None not in keys
    assert len(set(keys)) == len(keys)


def test_what_has_no_portable_bytes_has_no_key() -> None:
    for dtype in (object, complex, np.longdouble):
        assert embedding_key(np.zeros((3, 4), dtype), None, ID) is None


def test_coarser_arithmetic_is_kept_apart_and_the_same_arithmetic_is_shared_by_providers() -> None:
    assert {arithmetic_of(name, None) for name in ("cpu", "cuda", "migraphx", "openvino", "directml")} == {""}
    assert arithmetic_of("cuda", {"device_id": "1"}) == ""
    bf16 = arithmetic_of("openvino", {"load_config": '{"CPU": {"INFERENCE_PRECISION_HINT": "bf16"}}'})
    coarse = [
        bf16,
        arithmetic_of("cuda", {"use_tf32": "1"}),
        arithmetic_of("coreml", {}),
        arithmetic_of("tensorrt", {}),
    ]
    assert "" not in coarse
    assert len(set(coarse)) == 4


@settings(max_examples=examples(150))
@given(st.data())
def test_any_changed_byte_and_any_missing_end_is_damage(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache = EmbeddingCache(folder)
        keep(cache, 1)
        path = cache.path_of(key_of(1))
        whole = path.read_bytes()
        place = data.draw(st.integers(0, len(whole) - 1))
        changed = bytes([whole[place] ^ data.draw(st.integers(1, 255))])
        damaged = data.draw(
            st.sampled_from([whole[:place], whole[:place] + changed + whole[place + 1 :], whole + b"x"])
        )
        path.write_bytes(damaged)
        values, (note,) = find(cache, 1)
        assert values is None
        assert str(path) in note
        assert "damaged" in note
        assert "\n" not in note
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="not a valid embedding"):
            Embedding.load(path)


def test_a_damaged_entry_is_removed_and_written_anew(cache: EmbeddingCache) -> None:
    keep(cache, 1)
    path = cache.path_of(key_of(1))
    path.write_bytes(b"")
    assert "damaged" in find(cache, 1)[1][0]
    assert not path.exists()
    keep(cache, 1)
    np.testing.assert_array_equal(find(cache, 1)[0], features(1))


@pytest.mark.parametrize(
    ("old", "new"), [(b'"F32"', b'"F64"'), (b'"F32"', b"3"), (b'"F32"', b"[]"), (b'"1.0"', b'"9.0"')]
)
def test_an_entry_that_somebody_wrote_by_hand_is_damage(cache: EmbeddingCache, old: bytes, new: bytes) -> None:
    keep(cache, 1)
    path = cache.path_of(key_of(1))
    content = path.read_bytes()[:-32].replace(old, new.ljust(len(old)), 1)
    path.write_bytes(content + hashlib.sha256(content).digest())
    values, notes = find(cache, 1)
    assert values is None
    assert "damaged" in notes[0]


def test_an_entry_under_another_name_or_of_another_encoder_is_not_taken(cache: EmbeddingCache) -> None:
    keep(cache, 1)
    for key, embedding_id, shape in (
        (key_of(2), ID, SHAPE),
        (key_of(1), ID[::-1], SHAPE),
        (key_of(1), ID, (1, 4, 2, 2)),
    ):
        cache.path_of(key).write_bytes(cache.path_of(key_of(1)).read_bytes())
        found, notes = cache.find(key, embedding_id, shape)
        assert found is None
        assert "belongs to another" in notes[0]
        keep(cache, 1)


@settings(max_examples=examples(60))
@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.sampled_from(["keep", "find"]), st.integers(0, 7)), min_size=1, max_size=40),
)
def test_what_was_not_used_for_longest_goes_first(room: int, steps: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        keep(EmbeddingCache(folder), 99)
        (probe,) = files(Path(folder))
        cache = EmbeddingCache(folder, max_bytes=room * probe.stat().st_size)
        probe.unlink()
        expected: OrderedDict[int, None] = OrderedDict()
        for action, number in steps:
            if action == "keep":
                assert keep(cache, number) == ()
                expected[number] = None
            else:
                assert (find(cache, number)[0] is not None) == (number in expected)
            if number in expected:
                expected.move_to_end(number)
            while len(expected) > room:
                expected.popitem(last=False)
            held = {number for number in range(8) if cache.path_of(key_of(number)).exists()}
            assert held == set(expected)


def test_a_cache_smaller_than_an_embedding_keeps_none_and_says_so(tmp_path: Path) -> None:
    (note,) = keep(EmbeddingCache(tmp_path / "cache", max_bytes=100), 1)
    assert "not kept" in note
    assert not (tmp_path / "cache").exists()


def test_all_can_be_removed_and_nothing_else_is(cache: EmbeddingCache, tmp_path: Path) -> None:
    assert cache.clear() == 0
    keep(cache, 1)
    keep(cache, 2)
    (cache.folder / f".{key_of(3)[:16]}.{'0' * 16}.unfinished").write_bytes(b"half")
    (cache.folder / "mine.txt").write_text("mine")
    assert cache.clear() == 3
    assert files(tmp_path) == [cache.folder / "mine.txt"]


def test_files_of_others_in_its_folder_are_neither_counted_nor_removed(tmp_path: Path) -> None:
    """An embedding store has a folder of the same name: `--cache-dir .` beside one must leave its shards alone."""
    others = ["shard-000000.safetensors", "store.json", f"{key_of(9).upper()}.safetensors", ".mine.unfinished"]
    (tmp_path / "embeddings").mkdir(mode=0o755)
    for name in others:
        (tmp_path / "embeddings" / name).write_bytes(bytes(100_000))
        os.utime(tmp_path / "embeddings" / name, (1, 1))
    (tmp_path / "embeddings" / f"{key_of(8)}.safetensors").mkdir()
    cache = EmbeddingCache(tmp_path, max_bytes=3000)
    for number in range(8):
        assert keep(cache, number) == ()
    assert 0 < len([number for number in range(8) if cache.path_of(key_of(number)).exists()]) < 8
    assert cache.clear() > 0
    assert sorted(path.name for path in cache.folder.iterdir()) == sorted([*others, f"{key_of(8)}.safetensors"])
    assert cache.clear() == 0


@posix
def test_a_folder_that_colleagues_use_is_not_closed(tmp_path: Path) -> None:
    (tmp_path / "embeddings").mkdir()
    (tmp_path / "embeddings" / "store.json").write_text("{}")
    for mode in (0o755, 0o775):
        (tmp_path / "embeddings").chmod(mode)
        notes = keep(EmbeddingCache(tmp_path), mode)
        assert stat.S_IMODE((tmp_path / "embeddings").stat().st_mode) == mode
        assert bool(notes) == (mode == 0o775)
        assert EmbeddingCache(tmp_path).path_of(key_of(mode)).exists() == (mode == 0o755)


@posix
def test_only_the_owner_can_read_whatever_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        cache = EmbeddingCache(tmp_path / "new" / "cache")
        keep(cache, 1)
        Embedding(features(), (5, 7), ID).save(tmp_path / "saved")
        (tmp_path / "given").mkdir()
        (tmp_path / "given" / "embeddings").mkdir(mode=0o777)
        keep(EmbeddingCache(tmp_path / "given"), 1)
    finally:
        os.umask(previous)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").rglob("*")}
    assert modes == {"cache": 0o700, "embeddings": 0o700, cache.path_of(key_of(1)).name: 0o600}
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "saved").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "given" / "embeddings").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "given").stat().st_mode) == 0o777, "a folder that the user made stays as it is"


@posix
@root
def test_what_another_user_made_is_neither_read_nor_added_to(tmp_path: Path) -> None:
    entry, folder = EmbeddingCache(tmp_path / "entry"), EmbeddingCache(tmp_path / "folder")
    keep(entry, 1)
    keep(folder, 1)
    os.chown(entry.path_of(key_of(1)), 1, 1)
    os.chown(folder.folder, 1, 1)
    for cache, reason in ((entry, "isn't a regular file of this user"), (folder, "belongs to another user")):
        values, (note,) = find(cache, 1)
        assert values is None
        assert reason in note
    assert "belongs to another user" in keep(folder, 2)[0]
    assert not folder.path_of(key_of(2)).exists()


@posix
def test_links_and_pipes_are_not_followed(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path / "cache")
    keep(cache, 1)
    path = cache.path_of(key_of(1))
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert find(cache, 1)[0] is None
    keep(cache, 1)
    assert not path.is_symlink()
    assert find(cache, 1)[1] == ()
    path.unlink()
    os.mkfifo(path)
    assert "isn't a regular file" in find(cache, 1)[1][0]
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "embeddings").symlink_to(cache.folder)
    for notes in (find(EmbeddingCache(tmp_path / "linked"), 1)[1], keep(EmbeddingCache(tmp_path / "linked"), 1)):
        assert "is not a folder" in notes[0]


def test_a_folder_that_cannot_be_made_is_told_in_one_line_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = EmbeddingCache(tmp_path / "file" / "cache")
    (said,) = keep(cache, 1)
    assert str(tmp_path / "file") in said
    assert "\n" not in said
    assert find(cache, 1)[0] is None


def test_a_full_disk_keeps_nothing_half_written(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    cache = EmbeddingCache(tmp_path)
    keep(cache, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
    try:
        kept = cache.keep(key_of(2), Embedding(features(2), (5, 7), ID))
        with pytest.raises(OutputError, match="File too large"):
            Embedding(features(), (5, 7), ID).save(tmp_path / "saved")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in kept.notes[0]
    np.testing.assert_array_equal(kept.features, features(2))
    assert files(tmp_path) == [cache.path_of(key_of(1))]


def test_a_user_without_a_home_has_no_cache_and_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAMRI_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert "home directory" in keep(EmbeddingCache(), 1)[0]
    assert find(EmbeddingCache(), 1)[0] is None


def test_a_wrong_precision_or_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fp32 or fp16"):
        EmbeddingCache(tmp_path, precision="int8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="0 bytes or more"):
        EmbeddingCache(tmp_path, max_bytes=-1)


def test_an_embedding_that_nothing_could_use_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="embedding_id"):
        Embedding(features(), (5, 7), None).save(tmp_path / "saved")
    with pytest.raises(ValueError, match="fp16"):
        Embedding(features() * np.float32(1e6), (5, 7), ID).save(tmp_path / "saved", "fp16")
    assert files(tmp_path) == []
    with pytest.raises(InputError, match="cannot read"):
        Embedding.load(tmp_path / "saved")
