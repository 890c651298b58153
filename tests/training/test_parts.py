"""Which slices a folder of embeddings stands for, the same for training, evaluation and `samri-embed --verify`."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner, Result
from segment_anything.modeling import Sam

from samri.errors import InputError
from samri.model import load_checkpoint
from samri_training.embed import checkpoint_facts
from samri_training.embed import main as embed_main
from samri_training.evaluate import EmbeddedSlices, SliceFolder
from samri_training.evaluate import main as evaluate_main
from samri_training.published import PublishedCache, open_embeddings
from samri_training.store import EmbeddingStore, combine
from samri_training.train import Settings
from samri_training.train._data import TrainingData, open_data
from tests.support.sams import save_checkpoint
from tests.support.stores import drawn_slices, write_store

pytestmark = pytest.mark.slow  # Whole runs.


def write_dataset(folder: Path, patients: int, scans: int = 2, slices: int = 2) -> Path:
    """As `samri-prepare` leaves it: several scans of each patient, who stands in the sidecar only."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(5)
    cases = {}
    for scan in range(patients * scans):
        case = f"scan{scan:02d}"
        cases[case] = {"patient": f"patient{scan % patients}", "intensity_range": None, "sources": []}
        for index in range(slices):
            mask = np.zeros((40, 50, 1), np.uint8)
            mask[10:25, 12:30] = 1
            image = (60 * mask + rng.integers(0, 40, mask.shape)).astype(np.int16)
            for role, voxels in (("img", image), ("seg", mask)):
                nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / f"{case}_{role}_{index}.nii.gz")
    content = {"format": "samri-slices", "format_version": 1, "cases": cases}
    (folder / "slices.json").write_text(json.dumps(content))
    return folder


def write_cache(folder: Path, sam: Sam, count: int, seed: int = 0, cases: int = 4) -> Path:
    """A published cache of `count` slices, made from a store."""
    folder.mkdir(parents=True)
    store = EmbeddingStore.open(
        write_store(folder.with_name(f".{folder.name}"), sam, drawn_slices(count, seed=seed, cases=cases))
    )
    for each in store:
        content = {"img": np.float32(each.features)[None], "mask": each.mask[None], "ori_size": np.array(each.shape)}
        np.savez_compressed(folder / f"{each.name}.npz", **content)
    return folder


def opened(checkpoint: Path, folder: Path, **settings: object) -> TrainingData:
    return open_data(Settings(embedding_dir=folder, **settings), load_checkpoint(checkpoint))  # type: ignore[arg-type]


def evaluated(checkpoint: Path, output: Path, *arguments: object) -> Result:
    options = ["-m", checkpoint, "-o", output, "--device", "cpu", "--no-plots", "--json", *arguments]
    return CliRunner().invoke(evaluate_main, [str(each) for each in options])


def one_line(result: Result) -> str:
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.strip().splitlines()
    return line


def test_scans_of_one_patient_stay_together_from_slices_to_training(tmp_path: Path, checkpoint: Path) -> None:
    data = write_dataset(tmp_path / "data", patients=5)
    options = ["--data-dir", data, "--save-dir", tmp_path / "store", "--checkpoint", checkpoint, "--device", "cpu"]
    result = CliRunner().invoke(embed_main, [str(each) for each in options])
    assert result.exit_code == 0, result.output
    store = EmbeddingStore.open(tmp_path / "store")
    patients = {f"patient{index}" for index in range(5)}
    for source in (SliceFolder(data), EmbeddedSlices(store)):
        assert {sample.case for sample in source} == patients
    by_name = {pair.name: pair.case for pair in SliceFolder(data)}  # type: ignore[attr-defined]
    assert dict(store.names()) == by_name

    parts = opened(checkpoint, tmp_path / "store", val_fraction=0.4)
    assert "2 of 5 cases" in parts.note
    learned, held = (
        {store[index].case for index in some} for some in (parts.training_samples, parts.validation_samples)
    )
    assert len(held) == 2
    assert learned == patients - held


def test_training_on_caches_of_several_datasets_leaves_the_other_splits_alone(
    tmp_path: Path, small_sam: Sam, checkpoint: Path
) -> None:
    counts = {"training": 4, "validation": 2, "testing": 3}
    for seed, (split, count) in enumerate(counts.items()):
        write_cache(tmp_path / "cache" / "A" / split, small_sam, count, seed=seed)
    write_cache(tmp_path / "cache" / "B" / "training", small_sam, 5, seed=7)
    data = opened(checkpoint, tmp_path / "cache")
    assert data.validation is not None
    assert (len(data.training_samples), len(data.validation_samples)) == (9, 2)
    one = opened(checkpoint, tmp_path / "cache" / "A", val_embedding_dir=tmp_path / "cache")
    assert (len(one.training_samples), len(one.validation_samples)) == (4, 2)
    with pytest.raises(InputError, match=r"A holds the slices of training, validation, testing, .* name one of them"):
        PublishedCache(tmp_path / "cache" / "A", checkpoint_facts(checkpoint, "samri"))


def test_a_dataset_without_training_slices_is_refused_and_a_split_named_itself_is_taken(
    tmp_path: Path, small_sam: Sam, checkpoint: Path
) -> None:
    testing = write_store(tmp_path / "data" / "testing", small_sam, drawn_slices(4))
    with pytest.raises(InputError, match="holds no embeddings for training, only for testing"):
        opened(checkpoint, tmp_path / "data")
    assert len(opened(checkpoint, testing, val_every=0).training_samples) == 4
    # Named itself, a folder called `validation` isn't validated on as well.
    alone = opened(checkpoint, write_store(tmp_path / "validation", small_sam, drawn_slices(4)))
    assert not set(alone.training_samples) & set(alone.validation_samples)
    assert "held out" in alone.note


@pytest.mark.slow
def test_evaluation_takes_the_split_that_was_asked_for_or_none(
    tmp_path: Path, small_sam: Sam, checkpoint: Path
) -> None:
    stores, caches = tmp_path / "stores", tmp_path / "caches"
    for split, count in (("training", 5), ("testing", 2)):
        write_store(stores / "A" / split, small_sam, drawn_slices(count))
        write_cache(caches / split, small_sam, count)
    bare = write_store(tmp_path / "bare", small_sam, drawn_slices(3))

    def slices(output: str, *arguments: object) -> int:
        result = evaluated(checkpoint, tmp_path / output, *arguments)
        assert result.exit_code == 0, result.output
        return int(json.loads(result.stdout)["counts"]["slices"])

    assert slices("1", "--embedding-dir", stores) == 2
    assert slices("2", "--embedding-dir", caches) == 2
    assert slices("3", "--embedding-dir", caches, "--split", "training") == 5
    assert slices("4", "--embedding-dir", stores / "A" / "training") == 5
    assert slices("5", "--embedding-dir", bare) == 3
    no = tmp_path / "no"
    line = one_line(evaluated(checkpoint, no, "--embedding-dir", stores, "--split", "validation"))
    assert "stores holds no embeddings for validation, only for training, testing" in line
    line = one_line(evaluated(checkpoint, no, "--embedding-dir", stores / "A" / "training", "--split", "testing"))
    assert "only for training" in line
    assert "leave out --split" in one_line(evaluated(checkpoint, no, "--embedding-dir", bare, "--split", "testing"))


def test_embeddings_in_and_out_of_splits_are_not_guessed_about(
    tmp_path: Path, small_sam: Sam, checkpoint: Path
) -> None:
    write_store(tmp_path / "training", small_sam, drawn_slices(3))
    loose = write_store(tmp_path / "loose", small_sam, drawn_slices(3))
    with pytest.raises(InputError, match="outside of folders for training or train, validation or val"):
        opened(checkpoint, tmp_path)
    assert len(opened(checkpoint, loose, val_every=0).training) == 3


def test_every_store_below_a_folder_is_verified(tmp_path: Path, small_sam: Sam) -> None:
    for name in ("A/training", "A/testing", "B/training"):
        write_store(tmp_path / name, small_sam, drawn_slices(2))
    result = CliRunner().invoke(embed_main, ["--verify", "--save-dir", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert [line.partition(":")[0] for line in sorted(result.stdout.splitlines())] == [
        str(tmp_path / name) for name in ("A/testing", "A/training", "B/training")
    ]


def test_patients_of_one_name_in_two_datasets_stay_two(tmp_path: Path, small_sam: Sam, checkpoint: Path) -> None:
    for dataset in ("A", "B"):
        write_store(tmp_path / dataset / "testing", small_sam, drawn_slices(4, cases=2))
    dirs = ("--embedding-dir", tmp_path / "A", "--embedding-dir", tmp_path / "B" / "testing")
    result = evaluated(checkpoint, tmp_path / "out", *dirs)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["counts"]["cases"] == 4
    both = combine([EmbeddingStore.open(tmp_path / dataset / "testing") for dataset in ("A", "B")])
    assert list(both.names())[3:5] == [("A/testing/case1_img_3", "A/case1"), ("B/testing/case0_img_0", "B/case0")]
    assert [(each.name, each.case) for each in map(both.__getitem__, range(8))] == list(both.names())


def test_splits_of_one_dataset_share_its_patients(tmp_path: Path, small_sam: Sam) -> None:
    for split in ("training", "testing"):
        write_store(tmp_path / split, small_sam, drawn_slices(2))
    both = combine([EmbeddingStore.open(tmp_path / split) for split in ("training", "testing")])
    assert [case for _, case in both.names()] == ["case0", "case1"] * 2
    assert len({name for name, _ in both.names()}) == 4


def test_a_folder_named_twice_is_refused(tmp_path: Path, small_sam: Sam, checkpoint: Path) -> None:
    store = write_store(tmp_path / "store", small_sam, drawn_slices(2))
    (tmp_path / "link").symlink_to(store)
    for again in (f"{store}/", tmp_path / "link", tmp_path / "store" / ".." / "store"):
        result = evaluated(checkpoint, tmp_path / "out", "--embedding-dir", store, "--embedding-dir", again)
        assert "is named twice" in one_line(result)


def test_spacing_is_known_when_every_part_knows_it(tmp_path: Path, small_sam: Sam, checkpoint: Path) -> None:
    facts = checkpoint_facts(checkpoint, "samri")
    store = open_embeddings(write_store(tmp_path / "store", small_sam, drawn_slices(2)), facts)
    cache = open_embeddings(write_cache(tmp_path / "cache", small_sam, 2), facts)
    assert store.info.spacing_known
    for parts in ([store, cache], [cache, store]):
        assert not combine(parts).info.spacing_known


def test_cases_of_a_cache_are_known_without_reading_it(
    tmp_path: Path, small_sam: Sam, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = write_cache(tmp_path / "cache", small_sam, 6)
    for file in sorted(cache.iterdir())[1:]:  # The first one tells the number format.
        file.write_bytes(b"cut off")
    data = opened(checkpoint, cache, val_fraction=0.25)
    assert (len(data.training_samples) + len(data.validation_samples), data.note[:24]) == (
        6,
        "validating on 1 of 4 cas",
    )


def test_training_on_a_cache_asks_for_the_profile_of_medsam(tmp_path: Path, small_sam: Sam) -> None:
    cache = write_cache(tmp_path / "cache", small_sam, 4)
    medsam = save_checkpoint(tmp_path / "medsam_vit_b.pth", small_sam)
    with pytest.raises(InputError, match=r"looks like MedSAM.* pass --profile medsam"):
        opened(medsam, cache)
    assert opened(medsam, cache, profile="medsam").training.info.profile == "medsam"
    store = write_store(tmp_path / "store", small_sam, drawn_slices(4))  # Says itself what it had.
    assert opened(medsam, store).training.info.profile == "samri"
