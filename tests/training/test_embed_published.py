from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import pytest
import torch

from samri.errors import InputError
from samri_training import published
from samri_training.embed import checkpoint_facts, main
from samri_training.published import PublishedCache, find_cached, open_embeddings
from samri_training.store import EmbeddingStore, EncoderFacts, combine
from tests.support.commands import call
from tests.support.sams import SMALL

SHAPE = SMALL.embedding_shape


@pytest.fixture(scope="module")
def facts(checkpoint: Path) -> EncoderFacts:
    return checkpoint_facts(checkpoint, "samri")


def features(index: int) -> np.ndarray:
    return np.random.default_rng(index).standard_normal((1, *SHAPE), dtype=np.float32)


def labels(index: int) -> np.ndarray:
    mask = np.zeros((1, 30 + index, 25))
    mask[0, 3:9, 4 : 12 + index] = 1 + index
    return mask


def write_archive(folder: Path, index: int, **changes: object) -> Path:
    """As the published script writes it: a compressed archive, labels as float64, the size as a tuple."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {"img": features(index), "mask": labels(index), "ori_size": labels(index).shape[1:], **changes}
    path = folder / f"case{index // 2}_img_{index}.npz"
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return path


def test_published_archives_read_like_a_store(tmp_path: Path, facts: EncoderFacts) -> None:
    for index in range(3):
        write_archive(tmp_path, index)
    cache = PublishedCache(tmp_path, facts)
    assert len(cache) == 3
    assert (cache.info.source, cache.info.dtype, cache.info.spacing_known) == ("published cache", "fp32", False)
    assert cache.info.embedding_id == facts.embedding_id
    for index in range(3):
        read = cache[index]
        np.testing.assert_array_equal(read.features, features(index)[0])
        np.testing.assert_array_equal(read.mask, labels(index)[0])
        assert (read.name, read.case) == (f"case{index // 2}_img_{index}", f"case{index // 2}")
        assert (read.shape, read.spacing) == ((30 + index, 25), (1.0, 1.0))
    with pytest.raises(IndexError):
        cache[3]


def test_archives_become_a_store_without_the_encoder_running(
    tmp_path: Path, checkpoint: Path, facts: EncoderFacts
) -> None:
    for dataset, split, index in (("a", "training", 0), ("b", "training", 1), ("b", "validation", 2)):
        write_archive(tmp_path / "cache" / dataset / split, index)
    result = call(
        main,
        "--data-dir",
        tmp_path / "cache",
        "--save-dir",
        tmp_path / "s",
        "--checkpoint",
        checkpoint,
        "--store-dtype",
        "fp32",
    )
    assert result.exit_code == 0, result.output
    assert "taken over as they are" in result.stderr
    store = EmbeddingStore.open(tmp_path / "s" / "training")
    assert [item.case for item in store] == ["a/case0", "b/case0"]
    np.testing.assert_array_equal(store[1].features, features(1)[0])
    np.testing.assert_array_equal(store[1].mask, labels(1)[0])
    assert store.info.source == "published cache"
    assert store.info.embedding_id == facts.embedding_id
    assert len(combine([store, PublishedCache(tmp_path / "cache" / "b" / "training", facts)])) == 3


def test_half_the_bytes_by_default(tmp_path: Path, checkpoint: Path) -> None:
    write_archive(tmp_path / "cache", 0)
    assert (
        call(main, "--data-dir", tmp_path / "cache", "--save-dir", tmp_path / "s", "--checkpoint", checkpoint).exit_code
        == 0
    )
    np.testing.assert_array_equal(EmbeddingStore.open(tmp_path / "s")[0].features, features(0)[0].astype(np.float16))


def save_tensor(path: Path, kind: str, index: int) -> None:
    if kind == "npy":
        np.save(path.with_suffix(".npy"), features(index))
    elif kind == "pt":
        torch.save(torch.from_numpy(features(index)), path.with_suffix(".pt"))
    else:
        torch.save(torch.from_numpy(features(index)[0]).bfloat16(), path.with_suffix(".pt"))


@pytest.mark.parametrize("kind", ["npy", "pt", "pt of bfloat16"])
@pytest.mark.parametrize(
    ("stem", "mask"), [("p_img_4", "p_seg_4"), ("p_img", "p_seg"), ("p", "p_seg"), ("p", "p_mask")]
)
def test_bare_tensors_find_their_masks_beside_them(
    tmp_path: Path, facts: EncoderFacts, kind: str, stem: str, mask: str
) -> None:
    save_tensor(tmp_path / f"{stem}.x", kind, 2)
    np.save(tmp_path / f"{mask}.npy", labels(2)[0].astype(np.uint8))
    cache = PublishedCache(tmp_path, facts)
    assert len(cache) == 1
    read = cache[0]
    tolerance = 0.01 if "bfloat16" in kind else 0
    np.testing.assert_allclose(read.features, features(2)[0], rtol=tolerance)
    np.testing.assert_array_equal(read.mask, labels(2)[0])
    assert read.case == "p"


def test_masks_of_other_kinds_are_read_and_nifti_brings_spacing(tmp_path: Path, facts: EncoderFacts) -> None:
    mask = labels(1).astype(np.uint8)
    for stem in ("a", "b", "c"):
        np.save(tmp_path / f"{stem}_img_1.npy", features(1))
    nib.save(nib.Nifti1Image(mask, np.diag([3, 0.5, 0.25, 1])), tmp_path / "a_seg_1.nii.gz")
    cv2.imwrite(str(tmp_path / "b_seg_1.png"), mask[0])
    torch.save(torch.from_numpy(mask), tmp_path / "c_seg_1.pt")
    cache = PublishedCache(tmp_path, facts)
    assert [cache[index].spacing for index in range(3)] == [(0.5, 0.25), (1.0, 1.0), (1.0, 1.0)]
    for index in range(3):
        np.testing.assert_array_equal(cache[index].mask, mask[0])
    assert not cache.info.spacing_known


def test_a_dictionary_of_tensors_holds_its_own_mask(tmp_path: Path, facts: EncoderFacts) -> None:
    content = {"img": features(0), "mask": labels(0), "ori_size": labels(0).shape[1:]}
    tensors = {key: torch.as_tensor(value) for key, value in content.items()}
    torch.save(tensors, tmp_path / "case0_img_0.pt")
    np.testing.assert_array_equal(PublishedCache(tmp_path, facts)[0].mask, labels(0)[0])


def test_a_folder_is_opened_as_what_it_is(tmp_path: Path, checkpoint: Path, facts: EncoderFacts) -> None:
    write_archive(tmp_path / "cache", 0)
    call(main, "--data-dir", tmp_path / "cache", "--save-dir", tmp_path / "s", "--checkpoint", checkpoint)
    assert isinstance(open_embeddings(tmp_path / "cache", facts), PublishedCache)
    assert isinstance(open_embeddings(tmp_path / "s", facts), EmbeddingStore)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"store\.json"):
        open_embeddings(tmp_path / "empty", facts)


class Dangerous:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("unpickled"),)


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".pt"])
def test_objects_are_never_unpickled(
    tmp_path: Path, facts: EncoderFacts, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cache"
    folder.mkdir()
    file = folder / f"p_img_0{suffix}"
    objects = np.array([Dangerous()], dtype=object)
    if suffix == ".npz":
        np.savez_compressed(file, img=objects, mask=labels(0), ori_size=[30, 25])
    elif suffix == ".npy":
        np.save(file, objects, allow_pickle=True)
    else:
        file.write_bytes(pickle.dumps(Dangerous(), protocol=2))
    np.save(folder / "p_seg_0.npy", labels(0))
    with pytest.raises(InputError, match=f"p_img_0{suffix} can't be read"):
        PublishedCache(folder, facts)
    assert not Path("unpickled").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"img": np.zeros((1, 64, 8, 8), np.float32)}, r"\(1, 64, 16, 16\).*name the checkpoint"),
        ({"img": np.zeros((1, *SHAPE), np.int32)}, "int32"),
        ({"mask": labels(0) * 1.0000001}, "not a label"),
        ({"mask": -labels(0)}, "not a label"),
        ({"mask": labels(0) * np.nan}, "not a label"),
        ({"mask": np.zeros((1, 30, 25))}, "empty mask"),
        ({"mask": np.ones((2, 30, 25))}, "not one slice"),
        ({"mask": np.array(["a"])}, "must be labels"),
        ({"ori_size": (25, 30)}, "ori_size"),
    ],
)
def test_a_cache_that_cannot_be_used_is_named(
    tmp_path: Path, facts: EncoderFacts, changes: dict[str, object], words: str
) -> None:
    path = write_archive(tmp_path, 0, **changes)
    with pytest.raises(InputError, match=words) as caught:
        PublishedCache(tmp_path, facts)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0, 10, 200, -5])
@pytest.mark.parametrize("suffix", [".npz", ".npy", ".pt"])
def test_a_file_that_was_cut_off_is_named(tmp_path: Path, facts: EncoderFacts, suffix: str, kept: int) -> None:
    file = write_archive(tmp_path, 0)
    if suffix != ".npz":
        file.unlink()
        save_tensor(file, suffix[1:], 0)
        np.save(tmp_path / "case0_seg_0.npy", labels(0))
    file = file.with_suffix(suffix)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(InputError, match=f"case0_img_0{suffix} can't be read"):
        PublishedCache(tmp_path, facts)


def test_a_missing_array_mask_or_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a folder"):
        find_cached(tmp_path / "no")
    with pytest.raises(InputError, match="no cached embeddings"):
        find_cached(tmp_path)
    np.savez(tmp_path / "a_img_0.npz", img=features(0), mask=labels(0))
    with pytest.raises(InputError, match=r"a_img_0.npz holds no 'ori_size'"):
        find_cached(tmp_path)[0].read(SHAPE)
    np.save(tmp_path / "b_img_0.npy", features(0))
    with pytest.raises(InputError, match=r"b_img_0.npy has no mask beside it: add b_seg_0.nii.gz"):
        find_cached(tmp_path)
    (tmp_path / "b_img_0.npy").unlink()
    torch.save(torch.from_numpy(features(0)), tmp_path / "b_img_0.pt")
    with pytest.raises(InputError, match=r"b_img_0.pt has no mask beside it: add b_seg_0.nii.gz"):
        find_cached(tmp_path)[1].read(SHAPE)


def test_an_archive_that_claims_to_be_huge_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "_LARGEST_ARRAY", 1 << 20)
    file = tmp_path / "a_img_0.npz"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("img.npy", "w") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": (2**40,)})  # type: ignore[arg-type]
        stream.write(bytes(1 << 21))
    with pytest.raises(InputError, match="claims 2097"):
        find_cached(tmp_path)[0].read(SHAPE)


def test_files_that_claim_more_than_they_hold_are_refused_at_once(tmp_path: Path, facts: EncoderFacts) -> None:
    small = torch.ones(1)
    expanded = {"img": torch.from_numpy(features(0)), "mask": small.expand(1, 100_000, 10_000_000)}
    torch.save(expanded, tmp_path / "p_img_0.pt")
    assert (tmp_path / "p_img_0.pt").stat().st_size < 100_000
    with pytest.raises(InputError, match=r"p_img_0\.pt claims a tensor of shape \(1, 100000, 10000000\) in 4 bytes"):
        PublishedCache(tmp_path, facts)
    (tmp_path / "p_img_0.pt").unlink()
    path = write_archive(tmp_path, 0)
    header = np.lib.format.magic(1, 0) + b"\x76\x00"
    text = "{'descr': '|u1', 'fortran_order': False, 'shape': (1, 100000, 10000000), }"
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in held.items():
            archive.writestr(name, header + text.ljust(117).encode() + b"\n1" if name == "mask.npy" else content)
    with pytest.raises(InputError, match=r"claims an array of shape \(1, 100000, 10000000\) for 'mask' in 129 bytes"):
        PublishedCache(tmp_path, facts)


@pytest.mark.parametrize("suffix", ["npz", "npy", "pt"])
def test_a_named_pipe_among_the_caches_is_not_waited_for(tmp_path: Path, facts: EncoderFacts, suffix: str) -> None:
    os.mkfifo(tmp_path / f"p_img_0.{suffix}")
    np.save(tmp_path / "p_seg_0.npy", labels(0)[0])
    with pytest.raises(InputError, match=rf"p_img_0\.{suffix} is a named pipe"):
        PublishedCache(tmp_path, facts)
